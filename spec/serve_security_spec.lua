--- `bough serve`: who may come in and do what, and what is told to whom.

local bough = require "bough"
local cjson = require "cjson"
local core = require "bough.core"
local proxy = require "spec.support.proxy"
local raises = require "spec.support.raises"
local registry = require "spec.support.registry"
local scratch = require "spec.support.scratch"
local serving = require "spec.support.serving"

local NOBODY = "00000000-0000-4000-8000-000000000000"

local function token_file(text, mode)
  local path = scratch.file(text)
  scratch.sh(("chmod %s %s"):format(mode or "600", scratch.quote(path)))
  return path
end

describe("tokens", function()
  local served, image

  setup(function()
    served = serving.start {
      tokens = {
        { name = "all", token = serving.TOKEN },
        { name = "none", token = "nothing-at-all", permissions = {} },
        { name = "lister", token = "only-list", permissions = { "list" } },
        { name = "short", token = "only-disposable", permissions = { "spawn_disposable" },
          limits = { instance_max_concurrency = 1, instance_max_timeout = 7, instance_memory = "64M" } },
        { name = "digest", sha256 = core.sha256 "known-by-its-digest", expires = 4102444800 },
        { name = "old", token = "long-gone", expires = "2001-01-01T00:00:00Z" },
      },
    }
    image = served:image "busybox"
  end)
  teardown(function() served:stop() end)

  it("S4: without permissions, whoami still works, and all else is 403", function()
    local who = served:get("/whoami", { token = "nothing-at-all" })
    assert.equal(200, who.status)
    for name, value in pairs(who.json.permissions) do assert.is_false(value, name) end
    for _, one in ipairs {
      { "GET", "/images", "list" }, { "PATCH", ("/images/%s/tag"):format(image), "set_image_tag" },
      { "DELETE", ("/images/%s/tag"):format(image), "set_image_tag" }, { "POST", "/images/import", "import" },
      { "GET", "/files", "list" }, { "POST", "/files", "spawn or spawn_disposable" },
      { "GET", "/files/" .. ("0"):rep(64) }, { "HEAD", "/files/" .. ("0"):rep(64) },
      { "POST", "/instances", "spawn or spawn_disposable" }, { "GET", "/operations", "list" },
      { "GET", "/operations/" .. NOBODY }, { "DELETE", "/operations/" .. NOBODY, "cancel" },
      { "GET", "/operations/" .. NOBODY .. "/events" }, { "POST", "/operations/" .. NOBODY .. "/subprocesses" },
      { "GET", "/operations/" .. NOBODY .. "/subprocesses/1" },
      { "DELETE", "/operations/" .. NOBODY .. "/subprocesses/1" },
      { "POST", "/operations/" .. NOBODY .. "/subprocesses/1/stdin" }, { "GET", "/inspect/?tag=busybox", "list" },
      { "GET", ("/inspect/%s/"):format(image), "list" }, { "GET", ("/inspect/%s/list?path=/"):format(image), "list" },
      { "GET", ("/inspect/%s/download?path=/bin/busybox"):format(image), "list" },
      { "HEAD", ("/inspect/%s/download?path=/bin/busybox"):format(image), "list" },
      { "GET", ("/inspect/%s/archive?path=/"):format(image), "list" },
      { "HEAD", ("/inspect/%s/archive?path=/"):format(image), "list" },
      { "GET", ("/inspect/%s/grep?pattern=x"):format(image), "list" },
    } do
      local method, path, permission = table.unpack(one)
      local body = (method == "POST" or method == "PATCH") and "{}" or nil
      local answer = served:request(method, path, { token = "nothing-at-all", body = body })
      assert.equal(403, answer.status, method .. " " .. path)
      if permission then
        assert.equal("Insufficient permissions: " .. permission, answer.json and answer.json.error
          or "Insufficient permissions: " .. permission)
      end
    end
    assert.equal("busybox", served.engine.images:get(image).tag)
  end)

  it("S4: a permission allows what it says and no more", function()
    local function status(token, method, path, body)
      return served:request(method, path, { token = token, body = body }).status
    end
    assert.equal(200, status("only-list", "GET", "/images"))
    assert.equal(200, status("only-list", "GET", ("/inspect/%s/list?path=/"):format(image)))
    assert.equal(403, status("only-list", "POST", "/instances", "{}"))
    assert.equal(403, status("only-list", "POST", "/files", "x"))
    assert.equal(403, status("only-disposable", "GET", "/images"))
    assert.equal(201, status("only-disposable", "POST", "/files", "x"))
    assert.equal(403, status("only-disposable", "DELETE", "/operations/" .. NOBODY))
    local spawn = { command = "/bin/true", image = image }
    local kept = served:post("/instances", { token = "only-disposable", json = spawn })
    assert.equal(403, kept.status)
    assert.equal("Insufficient permissions: spawn", kept.json.error)
    spawn.disposable = true
    local answer = served:post("/instances", { token = "only-disposable", json = spawn })
    assert.equal(201, answer.status, answer.body)
    served:finished(answer.json.uuid)
  end)

  it("tell their limits, and what they may", function()
    local who = served:get("/whoami", { token = "only-disposable" }).json
    assert.equal(7, who.limits.instance_max_timeout)
    assert.equal(64 << 20, who.limits.instance_memory)
    assert.equal(128 << 20, who.limits.upload_max_bytes)
    assert.is_true(who.permissions.spawn_disposable)
    assert.is_false(who.permissions.spawn)
    assert.not_equal(who.token_uuid, served:get("/whoami").json.token_uuid)
  end)

  it("may be known by their digest alone, and expire", function()
    local who = served:get("/whoami", { token = "known-by-its-digest" })
    assert.equal(200, who.status)
    assert.equal(4102444800, who.json.token_expiration)
    assert.equal(401, served:get("/whoami", { token = core.sha256 "known-by-its-digest" }).status)
    local old = served:get("/whoami", { token = "long-gone" })
    assert.equal(401, old.status)
    assert.matches("expired", old.json.error)
  end)

  it("S3: a server for one project wants its name", function()
    local one = serving.start { images = {}, project = "project-1" }
    finally(function() one:stop() end)
    local missing = one:get "/whoami"
    assert.equal(400, missing.status)
    assert.equal('Missing "Project" header', missing.json.error)
    assert.equal(400, one:get("/whoami", { headers = { Project = "" } }).status)
    assert.equal(403, one:get("/whoami", { headers = { Project = "project-2" } }).status)
    assert.equal(200, one:get("/whoami", { headers = { project = "project-1" } }).status)
    assert.equal(401, one:get("/whoami", { token = false, headers = { Project = "project-1" } }).status)
    -- a server without one does not mind
    assert.equal(200, served:get("/whoami", { headers = { Project = "anything" } }).status)
  end)

  it("are in no log, no error and no name", function()
    local events = {}
    local secret = "very-secret-token-of-mine"
    local one = serving.start {
      images = {}, tokens = { { name = "mine", token = secret } },
      log = function(event) events[#events + 1] = event end,
    }
    finally(function() one:stop() end)
    one:get "/whoami"
    one:get("/whoami?token=" .. secret)
    one:get("/nothing/here")
    one:get("/whoami", { token = secret .. "-wrong" })
    local text = cjson.encode(events) .. tostring(one.server) .. scratch.sh("cat " .. one.home .. "/serve.db*")
    assert.is_nil(text:find(secret, 1, true))
    local denied
    for _, event in ipairs(events) do denied = event.event == "denied" and event or denied end
    assert.equal("unknown token", denied.reason)
    assert.equal("127.0.0.1", denied.peer)
    local first
    for _, event in ipairs(events) do first = first or event.event == "request" and event end
    assert.same({ "mine", "GET", "/v1/whoami", 200 }, { first.token, first.method, first.path, first.status })
    assert.is_string(first.request)
    assert.is_number(first.seconds)
    assert.is_true(first.bytes > 0)
    assert.matches("^%d%d%d%d%-%d%d%-%d%dT", first.time)
  end)

  it("have their operations in the log, from the beginning to the end", function()
    local events = {}
    local one = serving.start { log = function(event) events[#events + 1] = event end }
    finally(function() one:stop() end)
    local uuid = one:post("/instances", {
      json = {
        command = "/bin/true", image = "tag:busybox", env = { PASSWORD = "not-for-the-log" }, disposable = true,
      },
    }).json.uuid
    one:finished(uuid)
    local told = {}
    for _, event in ipairs(events) do
      if event.event == "operation" then told[#told + 1] = event end
    end
    assert.same({ uuid, uuid, "PENDING", "SUCCESS", "tests", "instance" },
      { told[1].operation, told[2].operation, told[1].status, told[2].status, told[2].token, told[1].kind })
    assert.is_nil(told[1].seconds)
    assert.is_number(told[2].seconds)
    assert.is_nil(cjson.encode(events):find("not-for-the-log", 1, true))
  end)
end)

describe("token files", function()
  local config = require "bough.serve.config"

  it("are read", function()
    local path = token_file [[
# who may come in
[alice]
token = 0123456789abcdef
permissions = list, spawn
instance_max_concurrency = 4
instance_memory = 256M

; by digest
[ci]
sha256 = 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
expires = 2099-12-31T00:00:00Z
]]
    local tokens = config.read({ token_file = path }).tokens
    assert.equal(2, #tokens)
    local alice, ci = tokens[1], tokens[2]
    assert.equal("alice", alice.name)
    assert.equal(core.sha256 "0123456789abcdef", alice.hash)
    assert.is_true(alice.permissions.list and alice.permissions.spawn)
    assert.is_false(alice.permissions.import)
    assert.equal(4, alice.limits.instance_max_concurrency)
    assert.equal(256 << 20, alice.limits.instance_memory)
    assert.equal(3600, alice.limits.instance_max_timeout)
    assert.is_true(ci.permissions.import)
    assert.equal(4102358400, ci.expires)
  end)

  it("that others can read are refused", function()
    for _, mode in ipairs { "640", "604", "660", "644", "610" } do
      local problem = raises("denied", config.read, { token_file = token_file("[a]\ntoken = abc", mode) })
      assert.matches("chmod 600", problem.message)
    end
    raises("not_found", config.read, { token_file = "/nowhere/tokens" })
    raises("invalid", config.read, { token_file = scratch.dir() })
  end)

  it("that are wrong are refused with the line, and without the token", function()
    for text, wanted in pairs {
      ["token = secret-word"] = "line 1: token stands before the first section",
      ["[a]\ntoken secret-word"] = "line 2: neither",
      ["[a]\ntokn = secret-word"] = 'line 2: unknown key "tokn"',
      ["[a]\ntoken = x\n[a]\n"] = "line 3: each section",
      ["[]\n"] = "line 1: each section",
      ["# nothing"] = "there is no token in it",
      ["[a]\n"] = 'token "a": give either the token or its sha256',
      ["[a]\ntoken = secret word"] = 'token "a": a token is a string of printable characters',
      ["[a]\nsha256 = secret-word"] = 'token "a": sha256 must be 64',
      ["[a]\ntoken = secret-word\npermissions = lst"] = "did you mean \"list\"",
      ["[a]\ntoken = secret-word\nexpires = soon"] = "expires must be a time",
      ["[a]\ntoken = secret-word\ninstance_max_timeout = 0"] = "instance_max_timeout must be a whole number",
      ["[a]\ntoken = secret-word\n[b]\ntoken = secret-word"] = '"a" and "b" are the same token',
    } do
      local problem = raises("invalid", config.read, { token_file = token_file(text) })
      assert.is_not_nil(problem.message:find(wanted, 1, true), ("%q: %s"):format(text, problem.message))
      assert.is_nil(problem.message:find("secret", 1, true))
    end
  end)
end)

describe("options", function()
  local config = require "bough.serve.config"

  it("that open a server to others want TLS and tokens of one's own", function()
    local dir = scratch.dir "tls"
    registry.certificate(dir)
    local cert, key = dir .. "/cert.pem", dir .. "/key.pem"
    for _, address in ipairs { "0.0.0.0", "::", "192.0.2.1" } do
      local problem = raises("invalid", bough.serve, {
        address = address, tokens = { "a-token-of-some-length" }, port = 0,
      })
      assert.matches("needs TLS", problem.message)
      problem = raises("invalid", bough.serve, { address = address, cert = cert, key = key, port = 0 })
      assert.matches("needs tokens", problem.message)
      problem = raises("invalid", bough.serve, {
        address = address, cert = cert, key = key, port = 0, tokens = { "short" },
      })
      assert.matches("shorter than 16", problem.message)
    end
    for _, address in ipairs { "127.0.0.1", "127.1.2.3", "::1", "localhost" } do
      assert.is_string(config.read({ address = address }).generated)
    end
  end)

  it("that are wrong are named", function()
    for _, one in ipairs {
      { { prot = 1 }, 'did you mean "port"' }, { { port = 70000 }, "port must be" }, { { port = "x" }, "port must be" },
      { { address = 1 }, "address must be" }, { { cert = "/dev/null" }, "it is not a file" },
      { { base_path = "a b" }, "base_path" }, { { base_path = "/../x" }, "base_path" },
      { { tokens = {} }, "at least one" }, { { tokens = { { name = "x" } } }, "either the token" },
      { { tokens = "abc" }, "must be a list" }, { { tokens = { "a b" } }, "printable" },
      { { tokens = { "a" }, token_file = "b" }, "exclude each other" }, { { network = "nat" }, "network" },
      { { limits = { instance_memory = "much" } }, "limits.instance_memory" }, { { limits = 1 }, "limits must" },
      { { tokens = { { name = "ci", token = "a", limits = { memory = 1 } } } }, 'token "ci": unknown limit "memory"' },
      { { tokens = { { name = "ci", token = "a", permissions = { "tag" } } } },
        'token "ci": unknown permission "tag": did you mean "set_image_tag"?' },
      { { address = "example.com" }, "address must be numeric" }, { { address = "fe80::1%eth0" }, "must be numeric" },
      { { limits = { memory = 1 } }, 'unknown limit "memory": did you mean "instance_memory"?' },
      { { grace = -1 }, "grace" },
      { { registries = { "a/b" } }, "no host" }, { { images = 1 }, "images must" }, { { log = 1 }, "log must" },
      { { engine = {}, home = "x" }, "engine excludes home" }, { { engine = {} }, "bough.open" },
      { { connections = 0 }, "connections must" }, { { project = "" }, "project must" },
    } do
      local opts, wanted = table.unpack(one)
      local good, problem = pcall(bough.serve, opts)
      assert.is_false(good)
      assert.is_true(core.is_error(problem), tostring(problem))
      assert.is_not_nil(problem.message:find(wanted, 1, true), problem.message)
    end
  end)

  it("TLS: clients find the certificate, and nobody reads along", function()
    local dir = scratch.dir "tls"
    registry.certificate(dir)
    local served = serving.start { images = {}, cert = dir .. "/cert.pem", key = dir .. "/key.pem" }
    finally(function() served:stop() end)
    assert.matches("^https://127.0.0.1:%d+$", served.url)
    assert.equal(200, served:get("/whoami").status)
    local stranger <close> = core.http()
    raises("transport", function() return stranger:request { url = served.url .. "/v1/whoami", timeout = 10 } end)
    local plain = served.url:gsub("^https", "http")
    assert.is_false((pcall(function()
      local answer = stranger:request { url = plain .. "/v1/whoami", timeout = 10 }
      assert(answer.status == 200)
    end)))
    local good, problem = pcall(serving.start, { images = {}, cert = dir .. "/key.pem", key = dir .. "/cert.pem" })
    assert.is_false(good)
    assert.is_true(core.is_error(problem), tostring(problem))
  end)
end)

describe("imports", function()
  local served, here

  setup(function()
    served = serving.start { images = {} }
    here = proxy.start()
    here:handle 'return function() return { status = 404, body = "found me" } end'
  end)
  teardown(function()
    served:stop()
    here:stop()
  end)

  local function import(at, host)
    return at:post("/images/import", { json = { registry = { url = ("docker://%s/x/y:1"):format(host) } } })
  end

  it("do not reach this machine by any name of it", function()
    for _, name in ipairs {
      "127.0.0.1", "localhost", "LOCALHOST", "[::1]", "127.1", "127.0.0.2", "0.0.0.0", "0", "2130706433", "0x7f.1",
      "0177.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[0:0:0:0:0:0:0:1]", "[::]",
      "registry.localhost", -- a name that leads to loopback
    } do
      local answer = import(served, ("%s:%d"):format(name, here.port))
      if answer.status == 201 then
        local operation = served:finished(answer.json.uuid)
        assert.same({ "FAILED", "denied" }, { operation.status, operation.error_kind }, name .. operation.error)
        assert.matches("this machine", operation.error)
      else
        assert.equal(403, answer.status, name)
        assert.equal("denied", answer.json.error_kind)
      end
    end
    assert.same({}, here:log())
  end)

  it("do not reach link-local addresses either", function()
    for _, host in ipairs { "169.254.169.254:80", "[fe80::1]:80", "[febf::1]:443", "[::ffff:169.254.1.1]:1" } do
      local answer = import(served, host)
      assert.equal(201, answer.status, answer.body)
      local operation = served:finished(answer.json.uuid)
      assert.same({ "FAILED", "denied" }, { operation.status, operation.error_kind }, host)
    end
  end)

  it("come from where the operator says, this machine included", function()
    for _, option in ipairs { "registries", "insecure_registries" } do
      for _, name in ipairs { "127.0.0.1", "127.1" } do
        local host = ("%s:%d"):format(name, here.port)
        local one <close> = setmetatable(serving.start { images = {}, [option] = { host } }, { __index = serving,
          __close = serving.stop })
        local operation = one:finished(import(one, host).json.uuid)
        assert.equal("FAILED", operation.status)
        assert.not_equal("denied", operation.error_kind)
      end
    end
    assert.is_true(#here:log() >= 3)
  end)

  it("go to a proxy on this machine all the same", function()
    here:handle 'return function() return { status = 200, body = "by way of the proxy" } end'
    local outside <close> = core.http { outside = true, proxy = here.url }
    assert.equal("by way of the proxy", outside:request({ url = "http://registry.invalid/" }).body)
    local direct <close> = core.http { outside = true, proxy = "" }
    raises("denied", direct.request, direct, { url = here.url })
    assert.equal(1, #here:log())
    assert.is_false((pcall(core.http, { outside = 1 })))
  end)
end)

describe("a server", function()
  it("has its store for itself, and leaves it when it stops", function()
    local home = scratch.store()
    local one = serving.start { home = home, images = {} }
    local problem = raises("busy", serving.start, { home = home, images = {} })
    assert.is_not_nil(problem.message:find(home, 1, true))
    one:stop()
    assert.equal("closed", one.server.state)
    one:stop()
    local two = serving.start { home = home, images = {} }
    two:stop()
  end)

  it("keeps what it was given over a restart", function()
    local home = scratch.store()
    local one = serving.start { home = home }
    local file = one:post("/files", { body = "stays" }).json
    local image = one:image "busybox"
    one:patch(("/images/%s/tag"):format(image), { json = { tag = "kept" } })
    one:stop()
    local two = serving.start { home = home, images = {} }
    finally(function() two:stop() end)
    assert.equal(file.uuid, two:get("/files/" .. file.sha256).json.uuid)
    assert.equal(file.uuid, two:post("/files", { body = "stays" }).json.uuid)
    assert.equal(image, two:image "kept")
  end)

  it("keeps its record from others", function()
    local one = serving.start { images = {} }
    finally(function() one:stop() end)
    assert.equal("600", scratch.sh(("stat -c %%a %s/serve.db"):format(one.home)):match "%d+")
  end)

  it("serves an engine of the caller's, which stays open", function()
    local box <close> = bough.open { home = scratch.store() }
    local one = serving.start { engine = box, images = { "busybox" } }
    assert.equal(box.images:get("busybox").uuid, one:image "busybox")
    one:stop()
    assert.is_false(box.closed)
    assert.equal("busybox", box.images:get("busybox").tag)
  end)

  it("several in one process do not get in each other's way", function()
    local one, two = serving.start { images = {} }, serving.start { images = {} }
    finally(function()
      one:stop()
      two:stop()
    end)
    local file = one:post("/files", { body = "only here" }).json
    assert.equal(200, one:head("/files/" .. file.sha256).status)
    assert.equal(404, two:head("/files/" .. file.sha256).status)
    one:stop()
    assert.equal(200, two:get("/whoami").status)
  end)

  it("makes a token where it was given none", function()
    local server <close> = bough.serve { home = scratch.store(), port = 0 }
    assert.matches("^%x+$", server.token)
    assert.equal(64, #server.token)
    local client <close> = core.http()
    assert.equal(200, client:request({ url = server.url .. "/v1/whoami", bearer = server.token }).status)
    assert.is_nil(tostring(server):find(server.token, 1, true))
  end)

  it("waits and is waited for", function()
    bough.run(function()
      local server <close> = bough.serve { home = scratch.store(), port = 0 }
      assert.is_false(server:wait(0.05))
      local stopping = bough.spawn(server.stop, server, 1)
      assert.is_true(server:wait(10))
      stopping:wait()
      assert.is_true(server:wait())
    end)
  end)

  it("tells those who follow a run of its end, and takes no more", function()
    local one = serving.start()
    finally(function() one:stop() end)
    local uuid = one:post("/instances", {
      json = { command = "sleep", args = { "600" }, image = "tag:busybox", timeout = 600 },
    }).json.uuid
    bough.run(function()
      local stream <close> = one.http:open {
        url = ("%s/v1/operations/%s/events?follow=1"):format(one.url, uuid), bearer = one.token,
        headers = { Accept = "text/event-stream" },
      }
      assert.equal(200, stream.status)
      local text = ""
      while not text:find "event: spawn" do text = text .. assert(stream:read()) end
      local stopping <close> = bough.spawn(one.server.stop, one.server, 0.3)
      while true do
        local piece = stream:read()
        if not piece then break end
        text = text .. piece
      end
      local last = cjson.decode(text:match "event: completion\ndata: ([^\n]+)\n\n$")
      assert.equal("FAILED", last.data.status)
      assert.matches("server stopped", last.data.error)
      stopping:wait()
    end)
    assert.equal("closed", one.server.state)
    assert.is_false((pcall(one.get, one, "/whoami")))
    -- and the next one knows
    local two = serving.start { home = one.home, images = {} }
    finally(function() two:stop() end)
    local operation = two:get("/operations/" .. uuid).json
    assert.same({ "FAILED", "the server stopped while it ran" }, { operation.status, operation.error })
  end)

  it("is there for `bough.safe`", function()
    local safe = require "bough.safe"
    local server, problem = safe.serve { port = "no" }
    assert.is_nil(server)
    assert.equal("invalid", problem.kind)
    server = assert(safe.serve { home = scratch.store(), port = 0 })
    assert.is_number(server.port)
    server:stop(0)
  end)

  it("turns down what is too large or too deep", function()
    local one = serving.start { images = {} }
    finally(function() one:stop() end)
    local path = ("/images/%s/tag"):format(NOBODY)
    local huge = one:patch(path, { body = '{"tag":"' .. ("x"):rep(2 << 20) .. '"}' })
    assert.equal(413, huge.status)
    local deep = one:patch(path, { body = ("["):rep(100000) })
    assert.equal(400, deep.status)
    local many = one:patch(path, { body = '{"tag":[' .. ("1,"):rep(500000) .. "1]}" })
    assert.equal(400, many.status)
    assert.equal(200, one:get("/whoami").status)
  end)
end)
