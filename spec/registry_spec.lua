--- Taking images from registries: Debian's own, with and without a proxy in front that spoils things, and
--- made up ones that say what no registry should.

local cjson = require "cjson"
local core = require "bough.core"
local docker_config = require "bough.docker_config"
local lfs = require "lfs"
local proxy = require "spec.support.proxy"
local raises = require "spec.support.raises"
local reference = require "bough.reference"
local registry = require "bough.registry"
local registry_session = require "bough.registry_session"
local scratch = require "spec.support.scratch"
local support = require "spec.support.registry"

local SIZES = { 3000000, 200, 1500000, 700000 }

-- The environment as docker sees it: none of the user's own.
local environment = {}
local real_getenv = os.getenv

local function content(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

local function names_in(path)
  local names = {}
  for name in lfs.dir(path) do
    if name ~= "." and name ~= ".." then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

local function with(opts)
  local all = { retry_delay = 0.001 }
  for name, value in pairs(opts or {}) do all[name] = value end
  return all
end

local function pull(ref, opts)
  opts = with(opts)
  opts.dir = opts.dir or scratch.dir "pull"
  return registry.pull(ref, opts), opts.dir
end

local function resolve(ref, opts)
  local image = registry.resolve(ref, with(opts))
  image:close()
  return image
end

-- How many bytes of each blob were sent.
local function served(server)
  local bytes, requests = {}, 0
  for _, entry in ipairs(server:log()) do
    local digest = entry.path:match "/blobs/(sha256:%x+)$"
    if digest then
      bytes[digest] = (bytes[digest] or 0) + entry.sent
      requests = requests + 1
    end
  end
  return bytes, requests
end

describe("bough.registry", function()
  local server, layout, made, digest, ref

  lazy_setup(function()
    rawset(os, "getenv", function(name)
      if name == "HOME" or name == "DOCKER_CONFIG" then return environment[name] end
      return real_getenv(name)
    end)
    server = support.start()
    layout, made, digest = support.layout { layers = SIZES }
    server:push(layout, "some/image:1")
    ref = server.host .. "/some/image:1"
  end)

  lazy_teardown(function()
    rawset(os, "getenv", real_getenv)
    server:stop()
  end)

  before_each(function() environment = { HOME = scratch.dir "home" } end)

  -- That all of the image is there, whole, and nothing else.
  local function complete(image, dir)
    local expected = { (made.config.digest:gsub(":", "-")) }
    for _, layer in ipairs(made.layers) do expected[#expected + 1] = layer.digest:gsub(":", "-") end
    table.sort(expected)
    assert.same(expected, names_in(dir))
    for i, layer in ipairs(image.layers) do
      assert.equal(made.layers[i].digest, layer.digest)
      assert.equal(layer.size, lfs.attributes(image.files[layer.digest], "size"))
      assert.equal(layer.digest, "sha256:" .. core.sha256(content(image.files[layer.digest])))
    end
  end

  describe("a real registry", function()
    it("gives an image whole, with progress", function()
      local events = {}
      local image, dir = pull(ref, { on_progress = function(event) events[#events + 1] = event end })
      complete(image, dir)
      assert.equal(digest, image.digest)
      assert.same({ "/bin/sh" }, cjson.decode(image.config.defaults).cmd)
      assert.equal(image.config_text, content(image.files[made.config.digest]))
      local finished = {}
      for _, event in ipairs(events) do
        assert.equal("download", event.op)
        assert.equal("bytes", event.unit)
        assert.truthy(event.done <= event.total)
        if event.finished then finished[event.item] = event.done end
      end
      for _, layer in ipairs(made.layers) do assert.equal(layer.size, finished[layer.digest]) end
    end)

    it("gives an image by its digest, by its tag, and by both", function()
      local name = server.host .. "/some/image"
      assert.equal(digest, resolve(name .. "@" .. digest).digest)
      assert.equal(digest, resolve(name .. ":1@" .. digest).digest)
      assert.equal(digest, resolve(reference.parse(ref)).digest)
      assert.equal(digest, resolve("docker://" .. ref).digest)
    end)

    it("picks the image for this machine out of several, or the one asked for", function()
      local function entry(architecture, variant)
        local its = support.layout { architecture = architecture }
        server:push(its, "many/" .. architecture .. ":x")
        local image = resolve(server.host .. "/many/" .. architecture .. ":x",
          { platform = "linux/" .. architecture })
        server:push(its, "many/all:" .. architecture)
        return {
          mediaType = image.manifest.mediaType, digest = image.digest, size = lfs.attributes(
            its .. "/blobs/sha256/" .. image.digest:sub(8), "size"),
          platform = { os = "linux", architecture = architecture, variant = variant },
        }
      end
      local here = support.architecture()
      local index = {
        schemaVersion = 2, mediaType = "application/vnd.oci.image.index.v1+json",
        manifests = { entry("s390x"), entry("riscv64"), entry(here) },
      }
      server:put_manifest("many/all", "all", index)
      local name = server.host .. "/many/all:all"
      assert.equal(index.manifests[3].digest, resolve(name).digest)
      assert.equal(index.manifests[1].digest, resolve(name, { platform = "s390x" }).digest)
      assert.equal(index.manifests[2].digest,
        resolve(name, { platform = { os = "linux", architecture = "riscv64" } }).digest)
      local problem = raises("not_found", resolve, name, { platform = "linux/arm/v7" })
      assert.truthy(problem.message:find("linux/riscv64", 1, true))
      assert.truthy(problem.message:find("linux/arm", 1, true))
      problem = raises("unsupported", resolve, server.host .. "/many/s390x:x")
      assert.truthy(problem.message:find("linux/s390x", 1, true))
    end)

    it("raises not_found for an image that is not there", function()
      local problem = raises("not_found", resolve, server.host .. "/some/image:2")
      assert.equal(404, problem.status)
      raises("not_found", resolve, server.host .. "/other")
      raises("not_found", resolve, server.host .. "/some/image@sha256:" .. ("0"):rep(64))
    end)

    it("sends a layer only to those who do not have it", function()
      local front = proxy.start { upstream = server.host }
      front:handle "return function() return { forward = true } end"
      local name = front.host .. "/some/image:1"
      local _, dir = pull(name)
      local _, before = served(front)
      pull(name, { dir = dir })
      local _, after = served(front)
      assert.equal(before + 1, after) -- the configuration
      local image <close> = registry.resolve(name, with())
      local path, told = scratch.dir() .. "/layer", 0
      image:fetch(image.layers[1], path, function(done) told = done end)
      assert.equal(image.layers[1].size, told)
      assert.same({ "layer" }, names_in((path:gsub("/layer$", ""))))
      front:stop()
    end)

    it("works in a generator inside a task, one layer after another", function()
      core.run(coroutine.wrap(function()
        local image <close> = registry.resolve(ref, with())
        for i, layer in ipairs(image.layers) do image:fetch(layer, scratch.dir() .. "/" .. i) end
      end))
    end)

    it("refuses wrong use", function()
      raises("invalid", resolve, ref, { username = "u" })
      raises("invalid", resolve, ref, { password = "p" })
      raises("invalid", resolve, ref, { username = "a:b", password = "p" })
      raises("invalid", resolve, ref, { username = "a", password = "p\n" })
      raises("invalid", resolve, ref, { plattform = "x" })
      raises("invalid", resolve, ref, { platform = "x y" })
      raises("invalid", registry.pull, ref, {})
      raises("invalid", resolve, "Bad:1")
      raises("resource", resolve, ref, { max_bytes = 1000 })
    end)
  end)

  describe("authentication", function()
    local guarded

    lazy_setup(function()
      guarded = support.start { users = { joe = "s3:cret" } }
      guarded:push(layout, "some/image:1", "joe:s3:cret")
    end)

    lazy_teardown(function() guarded:stop() end)

    local function login(auths, more)
      local dir = scratch.dir "docker"
      local config = { auths = auths }
      for name, value in pairs(more or {}) do config[name] = value end
      scratch.file(cjson.encode(config), dir .. "/config.json")
      environment.DOCKER_CONFIG = dir
    end

    -- base64 of text, by somebody else
    local function base64(text) return scratch.sh("printf %s " .. scratch.quote(text) .. " | base64 -w0") end

    it("by password: those given, those stored, and none", function()
      local name = guarded.host .. "/some/image:1"
      local problem = raises("auth", resolve, name)
      assert.equal(401, problem.status)
      problem = raises("auth", resolve, name, { username = "joe", password = "wr0ng" })
      assert.is_nil(tostring(problem):find("wr0ng", 1, true))
      complete(pull(name, { username = "joe", password = "s3:cret" }))
      for _, form in ipairs { "%s", "https://%s", "http://%s/v1/" } do
        local key = form:format(guarded.host)
        login { ["other.org"] = { auth = base64 "x:y" }, [key] = { auth = base64 "joe:s3:cret" } }
        assert.equal(digest, resolve(name).digest)
      end
      raises("auth", resolve, name, { username = "joe", password = "wr0ng" }) -- given ones count
      raises("auth", resolve, name, { anonymous = true }) -- and so does the wish for none
      environment.HOME = scratch.dir()
      lfs.mkdir(environment.HOME .. "/.docker")
      scratch.file(content(environment.DOCKER_CONFIG .. "/config.json"),
        environment.HOME .. "/.docker/config.json")
      environment.DOCKER_CONFIG = nil
      assert.equal(digest, resolve(name).digest)
    end)

    it("says so when a helper keeps the credentials, or when they are broken", function()
      local name = guarded.host .. "/some/image:1"
      login({ [guarded.host] = {} }, { credsStore = "desktop" })
      local problem = raises("auth", resolve, name)
      assert.truthy(problem.message:find('"desktop"', 1, true))
      login({}, { credHelpers = { [guarded.host] = "ecr-login" } })
      assert.truthy(raises("auth", resolve, name).message:find('"ecr-login"', 1, true))
      login { [guarded.host] = { auth = "!!" } }
      raises("invalid", resolve, name)
      scratch.file("{", environment.DOCKER_CONFIG .. "/config.json")
      assert.truthy(raises("invalid", resolve, name).message:find("config.json", 1, true))
      assert.equal(digest, resolve(ref).digest) -- nobody asked for credentials
    end)

    it("reads what docker login stores", function()
      login {
        ["https://index.docker.io/v1/"] = { auth = base64 "hub:pass" },
        ["ghcr.io"] = { auth = base64 "<token>:ident" }, ["quay.io"] = { identitytoken = "ident2" },
        ["a.org"] = { username = "u", password = "p" },
      }
      assert.same({ username = "hub", password = "pass" }, docker_config.find "docker.io")
      assert.same({ identity_token = "ident" }, docker_config.find "ghcr.io")
      assert.same({ identity_token = "ident2" }, docker_config.find "quay.io")
      assert.same({ username = "u", password = "p" }, docker_config.find "a.org")
      assert.is_nil(docker_config.find "b.org")
      environment = {}
      assert.is_nil(docker_config.find "a.org")
    end)

    -- A registry behind a token server, both on one port. `rule` is an expression that says whether a
    -- request for a token is good.
    local function tokens(front, rule, extra)
      front:handle(([[return function(request, state)
        local host = request.headers.host
        if request.path:find "^/token" then
          state.count = (state.count or 0) + 1
          if not (%s) then return { status = 401, body = "{}" } end
          return { body = '{"token":"tok' .. state.count .. '","expires_in":60}' }
        end
        if request.headers.authorization ~= "Bearer tok" .. (state.count or 0) %s then
          return { status = 401, headers = { ["WWW-Authenticate"] = {
            'Basic realm="x, y"', 'Bearer realm="http://' .. host .. '/token?a=b",service="the registry",'
            .. 'scope="repository:some/image:pull"' } } }
        end
        return { forward = true, drop = { "authorization" } }
      end]]):format(rule, extra or ""))
    end

    it("by token: without credentials, with a password, with a stored token", function()
      local front = proxy.start { upstream = server.host }
      local name = front.host .. "/some/image:1"
      tokens(front, "not request.headers.authorization")
      complete(pull(name))
      local log = front:log()
      assert.equal("/token?a=b&service=the%20registry&scope=repository%3Asome%2Fimage%3Apull", log[2].path)
      assert.is_nil(log[2].headers.authorization)
      -- one for all that follows
      for i = 3, #log do assert.equal("Bearer tok1", log[i].headers.authorization) end

      tokens(front, "request.headers.authorization == 'Basic am9lOnMzOmNyZXQ='")
      raises("auth", resolve, name)
      raises("auth", resolve, name, { username = "joe", password = "wr0ng" })
      assert.equal(digest, resolve(name, { username = "joe", password = "s3:cret" }).digest)

      tokens(front, [[request.method == "POST" and request.body:find("refresh_token=id%2Bent", 1, true)
        and request.body:find("grant_type=refresh_token", 1, true)]])
      login { [front.host] = { identitytoken = "id+ent" } }
      assert.equal(digest, resolve(name).digest)
      front:stop()
    end)

    it("asks for another token when the first has expired", function()
      local front = proxy.start { upstream = server.host }
      tokens(front, "true", "or request.path:find 'blobs' and state.count == 1")
      complete(pull(front.host .. "/some/image:1"))
      front:stop()
    end)

    it("gives up a circle of 401", function()
      local front = proxy.start { upstream = server.host }
      local name = front.host .. "/some/image:1"
      tokens(front, "true", "or true")
      local problem = raises("auth", resolve, name, { username = "joe", password = "s3:cret" })
      assert.equal(3, #front:log())
      assert.is_nil(tostring(problem):find("s3:cret", 1, true))
      front:handle [[return function()
        return { status = 401, headers = { ["WWW-Authenticate"] = "Basic realm=x" } }
      end]]
      raises("auth", resolve, name, { username = "joe", password = "s3:cret" })
      assert.equal(2, #front:log())
      for _, challenge in ipairs { "", "Negotiate", "Bearer", "=,=", ('a="'):rep(1000) } do
        front:handle(([[return function()
          return { status = 401, headers = { ["WWW-Authenticate"] = %q } }
        end]]):format(challenge))
        local kind = challenge == "Bearer" and "protocol" or "auth"
        raises(kind, resolve, name)
        assert.equal(1, #front:log())
      end
      front:stop()
    end)

    it("refuses a place for tokens that is no URL, and answers without a token", function()
      local front = proxy.start()
      local name = front.host .. "/some/image:1"
      for _, realm in ipairs { "ftp://x/", "file:///etc/passwd", "x", "http://u:p@127.0.0.1/", "http://",
        "http://a b/", "http://127.0.0.1:999999/" } do
        front:handle(([[return function()
          return { status = 401, headers = { ["WWW-Authenticate"] = 'Bearer realm="%s"' } }
        end]]):format(realm))
        raises("protocol", resolve, name)
      end
      for _, body in ipairs { "", "{}", "[1]", '{"token":5}', '{"token":"a b"}', '{"token":""}', "<html>",
        '{"token":null}', '{"token":"' .. ("x"):rep(70000) .. '"}' } do
        front:handle(([[return function(request)
          if request.path:find "^/token" then return { body = %q } end
          return { status = 401, headers = {
            ["WWW-Authenticate"] = 'Bearer realm="http://' .. request.headers.host .. '/token"' } }
        end]]):format(body))
        raises("protocol", resolve, name)
      end
      front:stop()
    end)

    it("sends credentials nowhere in the clear but to this machine", function()
      local function trusts(name, realm, insecure)
        local session = registry_session.open(reference.parse(name), { insecure = insecure })
        return session:trusts(realm) == true
      end
      assert.truthy(trusts("ghcr.io/x", "https://ghcr.io/token"))
      assert.falsy(trusts("ghcr.io/x", "http://ghcr.io/token"))
      assert.falsy(trusts("ghcr.io/x", "http://localhost/token"))
      assert.truthy(trusts("localhost:5000/x", "http://localhost:5001/token"))
      assert.falsy(trusts("localhost:5000/x", "http://evil.org/token"))
      assert.falsy(trusts("localhost:5000/x", "http://localhost.evil.org/token"))
      assert.falsy(trusts("localhost:5000/x", "http://localhost@evil.org/token"))
      assert.falsy(trusts("localhost:5000/x", "http://127.0.0.1.evil.org/token"))
      assert.truthy(trusts("localhost:5000/x", "https://evil.org/token"))

      local front = proxy.start()
      front:handle [[return function()
        local realm = 'Bearer realm="http://evil.invalid/token"'
        return { status = 401, headers = { ["WWW-Authenticate"] = realm } }
      end]]
      local name = front.host .. "/x:1"
      local problem = raises("auth", resolve, name, { username = "joe", password = "s3:cret" })
      assert.truthy(problem.message:find "without encryption")
      front:stop()
    end)

    it("asks nobody for a token whom a registry names but should not", function()
      for _, insecure in ipairs { true, false } do
        local session = registry_session.open(reference.parse "registry.example:5000/x", { insecure = insecure })
        local function trusts(realm) return session:trusts(realm) == true end
        assert.is_false(trusts "http://registry.example:5000/token") -- TLS so far
        session.base = "http://registry.example:5000"
        assert.is_true(trusts "http://registry.example:5000/token")
        assert.is_true(trusts "http://Registry.Example/token")
        assert.is_true(trusts "https://auth.example/token")
        assert.is_false(trusts "http://10.0.0.1/token")
        assert.is_false(trusts "http://localhost/token")
        assert.is_false(trusts "http://registry.example.org/token")
      end
      local front, other = proxy.start(), proxy.start()
      other:handle [[return function() return { body = '{"token":"t"}' } end]]
      front:handle(([[return function()
        return { status = 401, headers = { ["WWW-Authenticate"] = 'Bearer realm="http://localhost:%d/token"' } }
      end]]):format(other.port))
      local problem = raises("protocol", resolve, front.host .. "/x:1", { anonymous = true })
      assert.truthy(problem.message:find "neither https nor its own host")
      assert.same({}, other:log())
      other:stop()
      front:stop()
    end)

    it("repeats nothing that a place for tokens says", function()
      local front = proxy.start()
      for _, status in ipairs { 404, 403, 429, 418, 500, 503, 200 } do
        front:handle(([[return function(request)
          if request.path:find "^/token" then
            return { status = %d, body = '{"errors":[{"message":"inside-word","code":"inside-word"}]}' }
          end
          return { status = 401, headers = {
            ["WWW-Authenticate"] = 'Bearer realm="http://' .. request.headers.host .. '/token"' } }
        end]]):format(status))
        local good, problem = pcall(resolve, front.host .. "/x:1")
        assert.is_false(good)
        assert.is_nil(tostring(problem):find("inside-word", 1, true), tostring(problem))
        if status == 418 or status == 503 then
          assert.matches("the token server answers with status", problem.message)
        end
      end
      front:stop()
    end)

    it("stays with the registry when it sends us elsewhere", function()
      local store = proxy.start { upstream = server.host }
      local front = proxy.start { upstream = server.host }
      store:handle [[return function(request)
        if request.headers.authorization then return { status = 400, body = "credentials came along" } end
        return { forward = true }
      end]]
      front:handle(([[return function(request)
        if not request.headers.authorization then
          return { status = 401, headers = { ["WWW-Authenticate"] = "Basic realm=x" } }
        end
        if request.path:find "/blobs/" then
          return { status = 307, headers = { Location = "%s" .. request.path .. "?sig=secret" } }
        end
        return { forward = true, drop = { "authorization" } }
      end]]):format(store.url))
      local name = front.host .. "/some/image:1"
      complete(pull(name, { username = "joe", password = "s3:cret" }))
      store:handle [[return function()
        return { status = 401, headers = { ["WWW-Authenticate"] = 'Bearer realm="https://evil.invalid/"' } }
      end]]
      local problem = raises("auth", pull, name, { username = "joe", password = "s3:cret" })
      assert.truthy(problem.message:find "sends us on")
      assert.is_nil(problem.message:find "sig=")
      store:stop()
      front:stop()
    end)

    it("repeats no secrets that the registry repeats", function()
      local front = proxy.start()
      front:handle [[return function(request)
        if not request.headers.authorization then
          return { status = 401, headers = { ["WWW-Authenticate"] = "Basic realm=x" } }
        end
        return { status = 403, body = '{"errors":[{"message":"no, s3:cret is not enough"}]}' }
      end]]
      local name = front.host .. "/x:1"
      local problem = raises("denied", resolve, name, { username = "joe", password = "s3:cret" })
      assert.truthy(problem.message:find("no, *** is not enough", 1, true))
      front:stop()
    end)
  end)

  describe("a bad line", function()
    local front, name

    lazy_setup(function()
      front = proxy.start { upstream = server.host }
      name = front.host .. "/some/image:1"
    end)

    lazy_teardown(function() front:stop() end)

    it("that cuts is no reason to send a byte twice", function()
      front:handle [[return function(request, state)
        if not request.path:find "/blobs/" then return { forward = true } end
        state[request.path] = (state[request.path] or 0) + 1
        return { forward = true, cut_at = state[request.path] <= 4 and 400000 or nil,
          reset = state[request.path] == 2 }
      end]]
      local image, dir = pull(name)
      complete(image, dir)
      local bytes = served(front)
      for _, layer in ipairs(image.layers) do
        -- a reset takes along what was on its way
        assert.truthy(bytes[layer.digest] >= layer.size and bytes[layer.digest] <= layer.size + 400000)
      end
    end)

    it("to a server without ranges starts over", function()
      front:handle [[return function(request, state)
        if not request.path:find "/blobs/" then return { forward = true } end
        state[request.path] = (state[request.path] or 0) + 1
        return { forward = true, cut_at = state[request.path] == 1 and 150 or nil, drop = { "range" } }
      end]]
      complete(pull(name))
    end)

    it("that never gets anywhere is given up after five attempts", function()
      front:handle [[return function(request)
        return { forward = true, cut_at = request.path:find "/blobs/" and 0 or nil }
      end]]
      local problem = raises("transport", pull, name)
      assert.equal("pull", problem.op)
      local _, requests = served(front)
      assert.equal(5, requests) -- of the configuration
      local first = made.layers[1].digest
      front:handle(("local first = %q\n"):format(first) .. [[return function(request)
        return { forward = true, cut_at = request.path:find(first, 1, true) and 100 or nil }
      end]])
      local image <close> = registry.resolve(name, with())
      local dir = scratch.dir()
      raises("transport", image.fetch, image, image.layers[1], dir .. "/layer")
      -- what came is there for another day
      assert.same({ "layer.part" }, names_in(dir))
      front:handle "return function() return { forward = true } end"
      image:fetch(image.layers[1], dir .. "/layer")
      assert.equal("bytes=500-", front:log()[1].headers.range)
      assert.same({ "layer" }, names_in(dir))
    end)

    it("that falls silent is tried again", function()
      front:handle [[return function(request, state)
        if not request.path:find "/blobs/" then return { forward = true } end
        state[request.path] = (state[request.path] or 0) + 1
        return { forward = true, stall_at = state[request.path] == 1 and 150 or nil }
      end]]
      complete(pull(name, { stall_timeout = 0.15 }))
    end)

    it("that changes bytes is found out: one more attempt, then corrupt and nothing left", function()
      local spoil = [[return function(request, state)
        local first = request.path:find(%q, 1, true)
        state.count = (state.count or 0) + (first and 1 or 0)
        return { forward = true, corrupt_at = first and state.count <= %d and 5000 or nil }
      end]]
      front:handle(spoil:format(made.layers[1].digest, 1))
      complete(pull(name))
      front:handle(spoil:format(made.layers[1].digest, 1000))
      local dir = scratch.dir()
      local problem = raises("corrupt", pull, name, { dir = dir })
      assert.truthy(problem.message:find(made.layers[1].digest, 1, true))
      local first = made.layers[1].digest:gsub(":", "-")
      for _, left in ipairs(names_in(dir)) do assert.is_nil(left:find(first, 1, true)) end
      local count = 0
      for _, entry in ipairs(front:log()) do
        if entry.path:find(made.layers[1].digest, 1, true) then count = count + 1 end
      end
      assert.equal(2, count)
      for _, document in ipairs { made.config.digest, "/manifests/" } do
        front:handle(([[return function(request)
          return { forward = true, corrupt_at = request.path:find(%q, 1, true) and 20 or nil }
        end]]):format(document))
        raises("corrupt", resolve, name)
      end
    end)

    it("that is too slow is left by the caller's deadline, and can be gone on with", function()
      front:handle(([[return function(request)
        return { forward = true, stall_at = request.path:find(%q, 1, true) and 100000 or nil }
      end]]):format(made.layers[1].digest))
      local dir = scratch.dir()
      local problem = raises("timeout", core.deadline, 0.5, pull, name, { dir = dir })
      assert.equal("deadline", problem.op)
      front:wait [[local log = ...
        for _, entry in ipairs(log) do if entry.stalled and entry.aborted then return true end end
        return false]]
      local part = dir .. "/" .. made.layers[1].digest:gsub(":", "-") .. ".part"
      assert.equal(100000, lfs.attributes(part, "size"))
      front:handle "return function() return { forward = true } end"
      complete(pull(name, { dir = dir }))
      assert.equal(made.layers[1].size - 100000, served(front)[made.layers[1].digest])
    end)

    it("is used for three layers at a time", function()
      front:handle [[return function(request)
        return { forward = true, delay = request.path:find "/blobs/" and 0.05 or nil }
      end]]
      local dir = scratch.dir()
      core.run(function()
        local most = 0
        local task = core.spawn(pull, name, { dir = dir })
        while task.status ~= "done" and task.status ~= "failed" do
          local busy = 0
          for _, entry in ipairs(front:log()) do
            if entry.path:find "/blobs/" and not entry.done then busy = busy + 1 end
          end
          most = math.max(most, busy)
        end
        complete(task:wait(), dir)
        assert.equal(3, most)
      end)
    end)

    it("stops at an error of on_progress, and raises it", function()
      front:handle "return function() return { forward = true } end"
      local mine = setmetatable({}, { __tostring = function() return "mine" end })
      local good, problem = pcall(pull, name, { on_progress = function() error(mine) end })
      assert.falsy(good)
      assert.equal(mine, problem)
    end)
  end)

  describe("a registry in trouble", function()
    local front, name

    lazy_setup(function()
      front = proxy.start { upstream = server.host }
      name = front.host .. "/some/image:1"
    end)

    lazy_teardown(function() front:stop() end)

    it("is asked again, when it says so or soon", function()
      front:handle [[return function(request, state)
        local count = (state[request.path] or 0) + 1
        state[request.path] = count
        if count > 3 then return { forward = true } end
        local status = ({ 503, 429, 500 })[count]
        return { status = status, headers = { ["Retry-After"] = status == 429 and "0" or nil } }
      end]]
      complete(pull(name))
    end)

    it("is given up after five attempts", function()
      for _, status in ipairs { 429, 500, 503 } do
        front:handle(([[return function()
          return { status = %d, body = '{"errors":[{"code":"X","message":"too\\nmuch"}]}' }
        end]]):format(status))
        local problem = raises("api", resolve, name)
        assert.equal(status, problem.status)
        assert.truthy(problem.message:find([[too\nmuch]], 1, true))
        assert.equal(5, #front:log())
        front:handle(([[return function(request)
          return request.path:find(%q, 1, true) and { status = %d } or { forward = true }
        end]]):format(made.layers[3].digest, status))
        problem = raises("api", pull, name)
        assert.equal(status, problem.status)
      end
    end)

    it("is believed at once when it says no", function()
      local kinds = { [403] = "denied", [404] = "not_found", [400] = "api", [304] = "api", [418] = "api" }
      for status, kind in pairs(kinds) do
        front:handle(("return function() return { status = %d } end"):format(status))
        assert.equal(status, raises(kind, resolve, name).status)
        assert.equal(1, #front:log())
      end
    end)

    it("that wants TLS here is told of plain HTTP", function()
      front:handle [[return function() return { status = 400 } end]]
      assert.match("plain HTTP", raises("api", resolve, name).message)
    end)

    it("that is not there at all is told soon", function()
      local gone = proxy.start()
      gone:stop()
      local problem = raises("transport", resolve, gone.host .. "/x:1")
      assert.equal("pull", problem.op)
      assert.truthy(problem.message:find(gone.host, 1, true))
    end)
  end)

  describe("nonsense", function()
    local front, name

    lazy_setup(function()
      front = proxy.start()
      name = front.host .. "/x/y:1"
    end)

    lazy_teardown(function() front:stop() end)

    local function sha(text) return "sha256:" .. core.sha256(text) end

    -- A registry that has this manifest, and blobs by digest.
    local function serve(manifest, blobs, more)
      local text = type(manifest) == "string" and manifest or cjson.encode(manifest)
      local content_type = more and more.content_type or type(manifest) == "table" and manifest.mediaType
        or "application/vnd.oci.image.manifest.v1+json"
      local entries = {}
      for _, blob in ipairs(blobs or {}) do entries[#entries + 1] = ("[%q] = %q"):format(sha(blob), blob) end
      front:handle(([=[
        local manifest, blobs = %q, { %s }
        return function(request)
          local digest = request.path:match "/blobs/(.*)$"
          if digest then
            return blobs[digest] and { body = blobs[digest]%s } or { status = 404, body = "{}" }
          end
          return { body = manifest, headers = { ["Content-Type"] = %q }%s }
        end]=]):format(text, table.concat(entries, ", "), more and more.blob or "", content_type,
          more and more.manifest or ""))
      return text
    end

    local config = cjson.encode {
      os = "linux", architecture = support.architecture(),
      rootfs = { type = "layers", diff_ids = { "sha256:" .. ("1"):rep(64) } },
    }
    local LAYER = "not really a layer"

    local function good_manifest(change)
      local value = {
        schemaVersion = 2, mediaType = "application/vnd.oci.image.manifest.v1+json",
        config = {
          mediaType = "application/vnd.oci.image.config.v1+json", digest = sha(config), size = #config,
        },
        layers = {
          { mediaType = "application/vnd.oci.image.layer.v1.tar", digest = sha(LAYER), size = #LAYER },
        },
      }
      if change then change(value, value.layers[1]) end
      return value
    end

    local function refused(kind, pattern, opts)
      local dir = scratch.dir()
      local problem = raises(kind, pull, name, { dir = dir, retry_delay = opts and opts.retry_delay })
      if pattern then assert.truthy(problem.message:find(pattern), problem.message) end
      assert.same({}, names_in(dir))
      assert.truthy(#tostring(problem) < 500)
      return problem
    end

    it("is told from sense", function()
      serve(good_manifest(), { config, LAYER })
      local image, dir = pull(name)
      assert.equal(2, #names_in(dir))
      assert.equal(1, #image.layers)
      -- what the server calls it does not matter where the document says it
      serve(good_manifest(), { config, LAYER }, { content_type = "application/json; charset=utf-8" })
      pull(name)
    end)

    it("by way of a web page", function()
      serve("<html>log in</html>", {}, { content_type = "text/html; charset=utf-8" })
      refused("protocol", "web page")
      front:handle(([[return function(request)
        if request.path:find "manifests" then return { body = %q } end
        return { body = "<html>", headers = { ["Content-Type"] = "text/html" } }
      end]]):format(cjson.encode(good_manifest())))
      refused("protocol", "web page")
      front:handle(([[return function(request)
        if request.path:find "manifests" then return { body = %q } end
        if request.path:find(%q, 1, true) then return { body = %q } end
        return { body = "<html>..", headers = { ["Content-Type"] = "text/html" } }
      end]]):format(cjson.encode(good_manifest()), sha(config), config))
      refused("corrupt", "web page")
    end)

    it("in manifests of the wrong form", function()
      for _, text in ipairs { "", "{", "[]", "null", "3", '"x"', "{}", '{"schemaVersion":2}', "\0",
        ("["):rep(5000), '{"layers":{"a":1},"config":{}}', '{"manifests":3}', '{"layers":[1]}' } do
        serve(text)
        refused("protocol")
      end
      serve('{"schemaVersion":1,"fsLayers":[],"signatures":[]}', {},
        { content_type = "application/vnd.docker.distribution.manifest.v1+prettyjws" })
      refused("unsupported", "schema 1")
      serve(good_manifest(function(value) value.manifests = value.layers end))
      refused("protocol", "at once")
      serve(good_manifest(function(value)
        value.config.mediaType = "application/vnd.cncf.helm.config.v1+json"
      end))
      refused("unsupported", "no container image")
      serve(good_manifest(function(_, layer) layer.mediaType = layer.mediaType .. "+encrypted" end))
      refused("unsupported", "encrypted")
    end)

    it("in sizes and digests", function()
      for _, size in ipairs { "-1", "1.5", "1e300", "9007199254740993000", '"12"', "null", "true", "[]",
        "1e15" } do
        local text = cjson.encode(good_manifest(function(_, layer) layer.size = 424242 end))
        serve((text:gsub("424242", size)), { config, LAYER })
        refused("protocol", nil)
      end
      for _, wrong in ipairs { "sha256:../../../etc/passwd", "sha256:" .. ("A"):rep(64), "sha256:", "",
        "md5:abc", "sha256:" .. ("a"):rep(63), "sha256:" .. ("a"):rep(64) .. "/x" } do
        serve(good_manifest(function(_, layer) layer.digest = wrong end), { config })
        refused("protocol")
      end
      local sha512 = "sha512:" .. ("a"):rep(128)
      serve(good_manifest(function(_, layer) layer.digest = sha512 end), { config })
      refused("unsupported", "sha512")
      serve(good_manifest(function(value)
        for i = 1, 501 do value.layers[i] = value.layers[1] end
      end), { config })
      refused("protocol", "501")
      serve(good_manifest(function(value) value.layers[2] = value.layers[1] end), { config, LAYER })
      refused("protocol", "layers")
      serve(good_manifest(function(value) value.config.size = (8 << 20) + 1 end), { config })
      refused("protocol")
      serve(good_manifest(function(value) value.config.size = #config - 1 end), { config })
      refused("protocol", "more than")
      serve(good_manifest(function(value) value.config.size = #config + 1 end), { config })
      refused("protocol")
    end)

    it("in bodies that are too long, or have no end", function()
      serve(good_manifest(), { config, LAYER }, { manifest = ", endless = true" })
      refused("protocol", "more than the 4194304 bytes")
      serve(good_manifest(), { config, LAYER }, { blob = ", endless = true" })
      refused("protocol", "more than")
      for _, how in ipairs { "endless = true", "trickle = 1, endless = true", "cut_at = 5, length = 5" } do
        front:handle(([[return function(request)
          if request.path:find "manifests" then return { body = %q } end
          if request.path:find(%q, 1, true) then return { body = %q } end
          return { body = %q, %s }
        end]]):format(cjson.encode(good_manifest()), sha(config), config, LAYER, how))
        local problem = refused("corrupt")
        assert.truthy(problem.message:find(sha(LAYER), 1, true))
        for _, entry in ipairs(front:log()) do assert.truthy(entry.sent < 8 << 20) end
      end
    end)

    it("in digests of documents", function()
      local text = serve(good_manifest(), { config, LAYER },
        { manifest = (", headers = { ['Docker-Content-Digest'] = 'sha256:%s' }"):format(("0"):rep(64)) })
      refused("corrupt", "digest")
      serve(text, { config, LAYER })
      local problem = raises("corrupt", resolve, front.host .. "/x/y@sha256:" .. ("0"):rep(64))
      assert.truthy(problem.message:find("sha256:000000000000", 1, true))
      assert.equal(sha(text), resolve(front.host .. "/x/y@" .. sha(text)).digest)
    end)

    it("in indexes that lead nowhere", function()
      local media_type = "application/vnd.oci.image.index.v1+json"
      serve('{"schemaVersion":2,"manifests":[]}', {}, { content_type = media_type })
      refused("not_found", "none")
      -- indexes of indexes
      local texts, inner = {}, '{"schemaVersion":2,"manifests":[]}'
      for _ = 1, 4 do
        texts[#texts + 1] = ("[%q] = %q"):format(sha(inner), inner)
        inner = cjson.encode { schemaVersion = 2, mediaType = media_type, manifests = { {
          mediaType = media_type, digest = sha(inner), size = #inner,
          platform = { os = "linux", architecture = support.architecture() },
        } } }
      end
      front:handle(([[local texts = { ["1"] = %q, %s }
        return function(request)
          return { body = texts[request.path:match "[^/]*$"], headers = { ["Content-Type"] = %q } }
        end]]):format(inner, table.concat(texts, ", "), media_type))
      refused("protocol", "nested")
      assert.equal(3, #front:log())
    end)

    it("in retries without end", function()
      front:handle [[return function() return { status = 503, headers = { ["Retry-After"] = "0" } } end]]
      refused("api", nil, { retry_delay = 100 })
      front:handle [[return function()
        return { status = 503, headers = { ["Retry-After"] = "Wed, 21 Oct 2015 07:28:00 GMT" } }
      end]]
      refused("api", nil, { retry_delay = 100 })
    end)
  end)

  describe("TLS", function()
    it("is used for all but this machine, and checked unless told otherwise", function()
      local secure = support.start { tls = true }
      secure:push(layout, "some/image:1")
      local session = registry_session.open(reference.parse "example.org/x", {})
      assert.equal("https://example.org", session.base)
      session = registry_session.open(reference.parse "localhost/x", {})
      assert.equal("http://localhost", session.base)
      -- an address that leads here, and is not taken for this machine's own
      local name = ("0.0.0.0:%d/some/image:1"):format(secure.port)
      raises("transport", resolve, name)
      assert.equal(digest, resolve(name, { insecure = true }).digest)
      name = ("0.0.0.0:%d/some/image:1"):format(server.port)
      raises("transport", resolve, name)
      assert.equal(digest, resolve(name, { insecure = true }).digest)
      secure:stop()
    end)
  end)
end)
