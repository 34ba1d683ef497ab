--- The client of ConTree services below the driver, against a stub that checks each request: the lines of the client
--- checklist, one test each, and what else can go wrong.

local contree_api = require "bough.contree.api"
local contree_stub = require "spec.support.contree_stub"
local core = require "bough.core"
local follow = require "bough.contree.follow"
local lfs = require "lfs"
local operations = require "bough.contree.operations"
local profile = require "bough.contree.profile"
local raises = require "spec.support.raises"
local schema = require "spec.support.contree_schema"
local scratch = require "spec.support.scratch"
local sse = require "bough.contree.sse"
local wire = require "bough.contree.wire"

local TOKEN = "stub-token-0123456789"
local ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"

describe("the contree client", function()
  local stub, apis

  lazy_setup(function() stub = contree_stub.start() end)
  lazy_teardown(function() stub:stop() end)

  before_each(function() apis = {} end)

  after_each(function()
    for _, api in ipairs(apis) do api:close() end
  end)

  local function new_api(more)
    local opts = { url = stub.url, token = TOKEN, retry = { pauses = { 0.005 } } }
    for name, value in pairs(more or {}) do opts[name] = value end
    local api = contree_api.new(opts)
    apis[#apis + 1] = api
    return api
  end

  -- Sets what the stub does; `source` is the body of its function.
  local function serve(source)
    stub:handle(("return function(request, state)\n%s\nend"):format(source))
  end

  local function last_request()
    local log = stub:log()
    return log[#log], #log
  end

  -- Environment variables as the client sees them.
  local function with_environment(values, fn, ...)
    local real = os.getenv
    os.getenv = function(name) return values[name] end -- luacheck: ignore 122
    local outcome = table.pack(pcall(fn, ...))
    os.getenv = real -- luacheck: ignore 122
    if not outcome[1] then error(outcome[2], 0) end
    return table.unpack(outcome, 2, outcome.n)
  end

  -- C1 to C5: requests ------------------------------------------------------------------------------

  it("C1 Base URL: prefix kept, trailing slash removed, bad scheme or host rejected.", function()
    serve "return { json = { permissions = {} } }"
    for _, url in ipairs { stub.url, stub.url .. "/", stub.url .. "///", stub.root .. "/a/b/" } do
      new_api({ url = url }):whoami()
    end
    local targets = {}
    for i, entry in ipairs(stub:log()) do targets[i] = entry.target end
    assert.same({ "/sandboxes/v1/whoami", "/sandboxes/v1/whoami", "/sandboxes/v1/whoami", "/a/b/v1/whoami" }, targets)
    assert.equal("https://host:8443/x", profile.base_url("HTTPS://host:8443/x/", "url"))
    assert.equal("https://[::1]:80", profile.base_url("https://[::1]:80/", "url"))
    for _, url in ipairs { "ftp://host/", "host/path", "https://", "https:///x", "https://:80", "https://host:0",
      "https://host:99999", "https://host:x", "https://host/x?y=1", "https://host/#f", "https://ho st/", "//host",
      "https://hunter2:pw@host/", "https://hunter2@host/", "https://host/\r\nX: y", "", "http:host" } do
      local problem = raises("invalid", contree_api.new, { url = url, token = TOKEN })
      assert.is_nil(tostring(problem):find "hunter2")
    end
    raises("invalid", contree_api.new, { token = TOKEN })
  end)

  it("C2 `Authorization` always, `Project` only when set, `Accept-Encoding: gzip`, a User-Agent.", function()
    serve "return { json = { permissions = {} } }"
    new_api():whoami()
    local headers = last_request().headers
    assert.equal("Bearer " .. TOKEN, headers.authorization)
    assert.is_nil(headers.project)
    assert.truthy(headers["accept-encoding"]:find "%f[%w]gzip")
    assert.truthy(headers["user-agent"]:find "^bough ")
    new_api({ project = "project-1", user_agent = "my-tool/2.0" }):whoami()
    headers = last_request().headers
    assert.equal("project-1", headers.project)
    assert.truthy(headers["user-agent"]:find "^my%-tool/2%.0 bough ")
    stub:check()
  end)

  it("C3 Unset fields omitted; `false`, `0`, `\"\"` and explicit null are sent.", function()
    serve "return { status = 201, json = { uuid = uuid(7) } }"
    local uuid = operations.spawn(new_api(), {
      command = "true", image = "tag:base", uid = 0, disposable = false, preserve_env = nil, args = wire.array {},
      env = {}, stdin = { value = "", close = false }, cwd = wire.null,
    })
    assert.equal("00000007-0000-4000-8000-000000000007", uuid)
    assert.equal('{"args":[],"command":"true","cwd":null,"disposable":false,"env":{},"image":"tag:base",'
      .. '"stdin":{"close":false,"value":""},"uid":0}', last_request().body)
    stub:check()
    for _, value in ipairs { "\xff", 0 / 0, math.huge } do
      local problem = raises("invalid", operations.spawn, new_api(), { command = value, image = "tag:base" })
      assert.truthy(problem.message:find("command", 1, true))
    end
  end)

  it("C4 No query string when no option is set; flags sent as `1`; repeated keys for lists.", function()
    serve "return { json = { status = 'SUCCESS', matches = array {} } }"
    local api = new_api()
    operations.get(api, ID)
    assert.equal("/sandboxes/v1/operations/" .. ID, last_request().target)
    operations.get(api, ID, { inflight = false })
    assert.equal("/sandboxes/v1/operations/" .. ID, last_request().target)
    operations.get(api, ID, { inflight = true })
    assert.equal("inflight=1", last_request().query)
    api:call {
      op = "grep", path = ("/inspect/%s/grep"):format(ID),
      query = { { "pattern", { "a b", "c+d" } }, { "path", { "/x" } }, { "glob", {} }, { "before", 0 } },
    }
    assert.equal("pattern=a%20b&pattern=c%2Bd&path=%2Fx&before=0", last_request().query)
    stub:check()
  end)

  it("C5 Path segments escaped (`a/b` as `a%2Fb`).", function()
    serve "return { json = { status = 'SUCCESS' } }"
    assert.equal("a%2Fb%3Fc%20%25%C3%A9", wire.escape "a/b?c %é")
    operations.get(new_api(), "a/b")
    assert.equal("/sandboxes/v1/operations/a%2Fb", last_request().target)
  end)

  -- C6 to C10: answers ------------------------------------------------------------------------------

  it("C6 gzip decoded everywhere, incrementally on streams; truncated gzip reported.", function()
    serve [[
      if request.path == "/whoami" then return { gzip = true, json = { permissions = {}, token_uuid = "t" } } end
      if request.path == "/files" then return { gzip = true, status = 403, json = { error = "no list for you" } } end
      if request.path == "/images" then return { gzip = "cut", json = { images = array {} } } end
      if request.params.path == "/cut" then return { gzip = "cut", pieces = { ("x"):rep(100) } } end
      if request.params.path == "/slow" then return { gzip = true, pieces = { "one", "two" }, stall = true } end
      return { gzip = true, pieces = { "abc", ("d"):rep(70000) } }
    ]]
    local api = new_api { retry = false }
    assert.equal("t", api:whoami().token_uuid)
    local problem = raises("denied", api.call, api, { op = "files", path = "/files" })
    assert.truthy(problem.message:find "no list for you")
    local function download(path)
      return { op = "read", path = ("/inspect/%s/download"):format(ID), query = { { "path", path } }, raw = true }
    end
    assert.equal("abc" .. ("d"):rep(70000), api:call(download "/whole").body)
    local slow <close> = api:open(download "/slow")
    local text = ""
    while #text < 6 do text = text .. slow:read() end -- the stream never ends
    assert.equal("onetwo", text)
    raises("transport", api.call, api, { op = "images", path = "/images" })
    raises("transport", api.call, api, download "/cut")
    local cut <close> = api:open(download "/cut")
    assert.equal(("x"):rep(100), cut:read())
    raises("transport", cut.read, cut)
    stub:check()
  end)

  it("C7 Error object from JSON, from plain text and from gzip bodies; `traceback` and `Retry-After` kept.", function()
    serve [[
      local n = tonumber(request.path:match "%d+$")
      local ways = {
        { status = 422, json = { error = "not a directory", status = 422, traceback = { "one", "two" } },
          headers = { ["Retry-After"] = "7", ["X-Request-ID"] = "r-1" } },
        { status = 500, body = "upstream\nis gone" },
        { status = 409, gzip = true, json = { error = "busy", status = 409 } },
        { status = 400, json = { error = { field = "limit", why = { "low" } } } },
        { status = 502, headers = { ["Content-Type"] = "text/html" },
          body = "<html><head><title>502 Bad\n Gateway</title></head><body>x</body></html>" },
        { status = 504 },
        { status = 404, json = { detail = "no route" } },
        { status = 403, body = ("\255\1 long "):rep(100000) },
        { status = 410, json = { error = "gone" } },
        { status = 507, json = { error = "no room", error_kind = "resource" } },
        { status = 400, json = { error = "x", error_kind = "cancelled" } },
        { status = 401, json = { error = "unknown token stub-token-0123456789" } },
        { status = 302, headers = { Location = "https://elsewhere/" } },
        { status = 418, body = "null" },
      }
      return ways[n]
    ]]
    local api = new_api { retry = false }
    local function fails(n, kind)
      local problem = raises(kind, operations.get, api, tostring(n))
      assert.equal("operations:get", problem.op)
      assert.truthy(#problem.message < 700)
      assert.truthy(utf8.len(problem.message))
      assert.is_nil(problem.message:find(TOKEN, 1, true))
      return problem
    end
    local problem = fails(1, "invalid")
    assert.equal(stub.host .. " answers 422: not a directory", problem.message)
    assert.same({ 422, 7, "one\ntwo", "r-1" },
      { problem.status, problem.retry_after, problem.traceback, problem.request_id })
    assert.truthy(fails(2, "api").message:find "500: upstream$")
    assert.truthy(fails(3, "state").message:find "409: busy$")
    assert.truthy(fails(4, "invalid").message:find('{"field":"limit","why":["low"]}', 1, true))
    assert.truthy(fails(5, "api").message:find "502: 502 Bad Gateway$")
    assert.truthy(fails(6, "api").message:find "the gateway got no answer")
    assert.truthy(fails(7, "not_found").message:find "no route")
    assert.truthy(fails(8, "denied").message:find "long")
    fails(9, "not_found")
    fails(10, "resource")
    fails(11, "invalid")
    fails(12, "auth")
    assert.truthy(fails(13, "api").message:find "redirects elsewhere")
    assert.truthy(fails(14, "api").message:find "418: null")
  end)

  it("C8 `Retry-After`: integer, fraction, date, negative, `inf`, garbage.", function()
    for text, seconds in pairs { ["3"] = 3, ["0.25"] = 0.25, [" 2 "] = 2, ["-5"] = 0, ["0"] = 0, [".5"] = 0.5,
      ["Wed, 21 Oct 2015 07:28:00 GMT"] = 0 } do
      assert.equal(seconds, wire.retry_after(text))
    end
    for _, text in ipairs { "inf", "nan", "-inf", "1e9999", "soon", "", "-", ".", "0x10", "3 s",
      "Wed, 32 Oct 2015 07:28:00 GMT", "Wed, 21 Foo 2015 07:28:00 GMT" } do
      assert.is_nil(wire.retry_after(text))
    end
    assert.is_nil(wire.retry_after(nil))
    local soon = wire.retry_after(os.date("!%a, %d %b %Y %H:%M:%S GMT", os.time() + 30))
    assert.truthy(soon > 27 and soon <= 30)
  end)

  it("C9 Any 2xx is success; tag lookup only 302, last path segment taken.", function()
    serve [[
      if request.path == "/inspect/" then return { status = 302, headers = { Location = uuid(3) .. "/" } } end
      if request.method == "DELETE" then return { status = request.path:find "tag" and 200 or 204, json = {} } end
      if request.path == "/images/import" then
        return { status = 202, headers = { Location = "/v1/operations/" .. uuid(4) .. "/" } }
      end
      return { status = 200, json = { uuid = uuid(5) } }
    ]]
    local api = new_api()
    assert.equal("00000005-0000-4000-8000-000000000005", (operations.spawn(api, { command = "a", image = "tag:b" })))
    assert.equal("00000004-0000-4000-8000-000000000004",
      operations.import(api, { registry = { url = "docker://docker.io/library/busybox:latest" } }))
    assert.is_true(operations.cancel(api, ID))
    api:call { op = "untag", method = "DELETE", path = ("/images/%s/tag"):format(ID) }
    local look_up = { op = "use", path = "/inspect/", query = { { "tag", "a/b:c" } }, statuses = { [302] = true } }
    local answer = api:call(look_up)
    assert.same({ 302, "00000003-0000-4000-8000-000000000003/" }, { answer.status, answer.headers.location })
    -- an answer that is none is not followed, and no success either
    raises("api", api.call, api, { op = "use", path = "/inspect/", query = { { "tag", "a" } } })
    stub:check()
  end)

  it("C10 HEAD: 2xx true, 404 false, other statuses raise.", function()
    serve [[
      local digest = request.path:match "%x+$"
      return { status = tonumber(digest:sub(1, 3)), headers = { ["Content-Length"] = "10" }, length = 10 }
    ]]
    local api = new_api { retry = false }
    local function exists(status)
      return api:exists { op = "files:exists", path = "/files/" .. status .. ("0"):rep(61) }
    end
    assert.is_true(exists "200")
    assert.is_true(exists "204")
    assert.is_false(exists "404")
    raises("auth", exists, "401")
    raises("denied", exists, "403")
    raises("api", exists, "500")
    stub:check()
  end)

  -- C11, C12: trying again --------------------------------------------------------------------------

  it("C11 No retry without a policy; with one: 5xx and 410 not for POST, 425 and 429 for all.", function()
    serve [[
      state[request.path] = (state[request.path] or 0) + 1
      local status = tonumber(request.path:match "(%d%d%d)$" or request.json.command)
      if state[request.path] < 3 then return { status = status, json = { error = "not now", status = status } } end
      return { status = 200, json = { uuid = uuid(1), status = "SUCCESS" } }
    ]]
    local function count(fn, ...)
      serve [[
        state.count = (state.count or 0) + 1
        local status = tonumber(request.path:match "(%d%d%d)$" or request.json.command)
        if state.count < 3 then return { status = status, json = { error = "not now", status = status } } end
        return { status = 200, json = { uuid = uuid(1), status = "SUCCESS" } }
      ]]
      local good = pcall(fn, ...)
      return #stub:log() .. (good and " good" or " bad")
    end
    local once, again = new_api { retry = false }, new_api()
    local unsafe = new_api { retry = { unsafe = true, pauses = { 0 } } }
    for _, status in ipairs { "410", "425", "429", "500", "502", "503", "504" } do
      assert.equal("1 bad", count(operations.get, once, status))
      assert.equal("3 good", count(operations.get, again, status))
      assert.equal("3 good", count(operations.cancel, again, status))
      local body = { command = status, image = "tag:b" }
      assert.equal("1 bad", count(operations.spawn, once, body))
      assert.equal((status == "425" or status == "429") and "3 good" or "1 bad", count(operations.spawn, again, body))
      assert.equal("3 good", count(operations.spawn, unsafe, body))
    end
    for _, status in ipairs { "400", "401", "403", "404", "409", "422" } do
      assert.equal(status == "409" and "1 good" or "1 bad", count(operations.cancel, again, status))
      assert.equal("1 bad", count(operations.spawn, unsafe, { command = status, image = "tag:b" }))
    end
    assert.equal("1 bad", count(operations.get, again, "503", { retry = false }))
  end)

  it("C12 Attempt limit respected; the same body bytes on each attempt; no replay of a POST on a dead connection.",
    function()
      serve "return { status = 429, json = { error = 'Max concurrency limit of 50 instances reached for project' } }"
      local problem = raises("resource", operations.spawn, new_api(), { command = "a", image = "tag:b" })
      assert.equal(429, problem.status)
      assert.truthy(problem.message:find "Max concurrency limit")
      local log = stub:log()
      assert.equal(10, #log)
      for _, entry in ipairs(log) do assert.equal(log[1].body, entry.body) end

      serve "return { status = 425 }"
      local path = scratch.file(("0123456789"):rep(30000))
      local api = new_api { retry = { attempts = 3, pauses = { 0.001 } } }
      raises("busy", api.call, api,
        { op = "upload", method = "POST", path = "/files", body = { path = path, offset = 10, size = 2000 } })
      log = stub:log()
      assert.equal(3, #log)
      for _, entry in ipairs(log) do assert.equal(("0123456789"):rep(200), entry.body) end
      stub:check()

      -- the connection has been in use, and ends without an answer
      serve [[
        if request.method == "GET" then return { json = { permissions = {} } } end
        return { raw = "" }
      ]]
      api = new_api()
      api:whoami()
      problem = raises("transport", operations.spawn, api, { command = "a", image = "tag:b" })
      assert.is_true(problem.sent)
      raises("transport", operations.stdin, api, ID, 1, "x", true)
      raises("transport", api.call, api, { op = "tag", method = "PATCH", path = "/images/" .. ID .. "/tag",
        json = { tag = "a" } })
      local posts = 0
      for _, entry in ipairs(stub:log()) do posts = posts + (entry.method ~= "GET" and 1 or 0) end
      assert.equal(3, posts)
      -- nobody is there: nothing can have been done
      local gone = contree_stub.start()
      gone:stop()
      problem = raises("transport", operations.spawn, new_api { url = gone.url }, { command = "a", image = "tag:b" })
      assert.is_false(problem.sent)
    end)

  -- C13, C14: who we are ----------------------------------------------------------------------------

  it("C13 Profiles: location order, `cli.ini` under `auth.ini`, type default `jwt`, IAM default URL, selection order, "
    .. "missing profile error, token never printed.", function()
      local home = scratch.dir "home"
      local function directory(path, auth, cli)
        scratch.sh("mkdir -p " .. scratch.quote(path))
        scratch.file(auth, path .. "/auth.ini")
        scratch.sh("chmod 600 " .. scratch.quote(path .. "/auth.ini"))
        if cli then scratch.file(cli, path .. "/cli.ini") end
      end
      local function of(url, token)
        return ("[profile:default]\nurl = %s\ntoken = %s\n"):format(url, token)
      end
      directory(home .. "/.config/contree", of("https://home.example", "home-token"))
      directory(home .. "/xdg/contree", of("https://xdg.example", "xdg-token"))
      directory(home .. "/own", of("https://own.example", "own-token"))
      local function url_with(environment)
        return with_environment(environment, profile.load).url
      end
      assert.equal("https://home.example", url_with { HOME = home })
      assert.equal("https://home.example", url_with { HOME = home, XDG_CONFIG_HOME = "", CONTREE_HOME = "" })
      assert.equal("https://xdg.example", url_with { HOME = home, XDG_CONFIG_HOME = home .. "/xdg" })
      assert.equal("https://own.example",
        url_with { HOME = home, XDG_CONFIG_HOME = home .. "/xdg", CONTREE_HOME = "~/own" })

      directory(home .. "/many", "\u{FEFF}" .. [[
; a comment
[DEFAULT]
profile = research
project = common

[profile:research]
TYPE = iam
Token = eyJ-100%%-secret
[profile:lab]
  # another
url: https://lab.example/sandboxes/
token = lab-token
project =
[profile:naked]
url = https://naked.example
[profile:nowhere]
token = nowhere-token
[profile:odd]
type = oauth
token = odd-token
]], "[cli]\ncolour = yes\n[DEFAULT]\nprofile = lab\n[profile:lab]\nurl = https://stale.example\nproject = from-cli\n"
        .. "[profile:plain]\nurl = https://plain.example\ntoken = plain-token\n")
      local environment = { HOME = home, CONTREE_HOME = home .. "/many" }
      local function load_with(more, opts)
        local values = {}
        for name, value in pairs(environment) do values[name] = value end
        for name, value in pairs(more or {}) do values[name] = value end
        return with_environment(values, profile.load, opts)
      end
      assert.same({
        name = "research", type = "iam", url = "https://api.tokenfactory.nebius.com/sandboxes",
        token = "eyJ-100%-secret", project = "common",
      }, load_with())
      local lab = load_with { CONTREE_PROFILE = "lab" }
      assert.same({ name = "lab", type = "jwt", url = "https://lab.example/sandboxes", token = "lab-token" }, lab)
      assert.equal("plain", load_with({ CONTREE_PROFILE = "lab" }, { profile = "plain" }).name)
      local problem = raises("not_found", load_with, { CONTREE_PROFILE = "gone" })
      assert.truthy(problem.message:find(home .. "/many/auth.ini", 1, true))
      assert.truthy(problem.message:find("CONTREE_PROFILE", 1, true))
      assert.truthy(problem.message:find("lab, naked", 1, true))
      raises("not_found", load_with, nil, { profile = "gone" })
      raises("auth", load_with, nil, { profile = "naked" })
      problem = raises("invalid", load_with, nil, { profile = "nowhere" })
      assert.is_nil(tostring(problem):find "nowhere%-token")
      problem = raises("invalid", load_with, nil, { profile = "odd" })
      assert.is_nil(tostring(problem):find "odd%-token")
      raises("auth", with_environment, { HOME = home .. "/nobody" }, profile.load)
      raises("auth", with_environment, {}, profile.load)

      -- a token goes only to the address that it is for
      assert.equal("lab-token", load_with(nil, { url = "https://lab.example/sandboxes" }).token)
      raises("auth", load_with, nil, { url = "https://other.example" })
      raises("auth", load_with, nil, { url = "https://other.example", profile = "lab" })
      raises("auth", load_with, nil, { url = "http://lab.example", token = "x" })
      assert.equal("http://lab.example",
        load_with(nil, { url = "http://lab.example", token = "x", insecure = true }).url)
      assert.equal("http://localhost:80", load_with(nil, { url = "http://localhost:80/", token = "x" }).url)
      raises("auth", contree_api.new, { url = "http://lab.example", token = "x" })

      -- what is wrong with a file is told without what is in it
      directory(home .. "/bad", "[profile:default]\nmy-secret-token\n")
      problem = raises("invalid", with_environment, { CONTREE_HOME = home .. "/bad" }, profile.load)
      assert.truthy(problem.message:find("/bad/auth.ini, line 2", 1, true))
      assert.is_nil(problem.message:find "my%-secret")
      -- and others can read it
      scratch.sh("chmod 644 " .. scratch.quote(home .. "/own/auth.ini"))
      local said = {}
      with_environment({ CONTREE_HOME = home .. "/own" }, profile.load, {
        log = function(level, message) said[#said + 1] = level .. ": " .. message end,
      })
      assert.equal(1, #said)
      assert.truthy(said[1]:find("^warning: .*/own/auth%.ini can be read by others"))
      assert.is_nil(lfs.attributes(home .. "/own/cli.ini"))
    end)

  it("C14 Environment profile only with token and URL; fallbacks `NEBIUS_API_KEY`, `NEBIUS_AI_PROJECT`.", function()
    local home = scratch.dir "home"
    scratch.file("[profile:default]\nurl = https://file.example\ntoken = file-token\nproject = file-project\n",
      home .. "/auth.ini")
    local function load_with(values, opts)
      values.CONTREE_HOME = home
      local found = with_environment(values, profile.load, opts)
      return table.concat({ found.name or "-", found.type, found.url, found.token, found.project or "-" }, " ")
    end
    local from_file = "default jwt https://file.example file-token file-project"
    assert.equal(from_file, load_with {})
    assert.equal(from_file, load_with { CONTREE_TOKEN = "t" })
    assert.equal(from_file, load_with { CONTREE_URL = "https://env.example", CONTREE_TOKEN = "" })
    assert.equal(from_file, load_with { CONTREE_URL = "", CONTREE_TOKEN = "t" })
    assert.equal("environment jwt https://env.example t -",
      load_with { CONTREE_URL = "https://env.example///", CONTREE_TOKEN = "t" })
    assert.equal("environment jwt https://env.example key ai",
      load_with { CONTREE_URL = "https://env.example", NEBIUS_API_KEY = "key", NEBIUS_AI_PROJECT = "ai" })
    assert.equal("environment jwt https://env.example t p", load_with {
      CONTREE_URL = "https://env.example", CONTREE_TOKEN = "t", NEBIUS_API_KEY = "key", CONTREE_PROJECT = "p",
      NEBIUS_AI_PROJECT = "ai", CONTREE_PROFILE = "default",
    })
    -- options go before it, and a chosen profile too
    local environment = { CONTREE_URL = "https://env.example", CONTREE_TOKEN = "t", CONTREE_PROJECT = "p" }
    assert.equal(from_file, load_with(environment, { profile = "default" }))
    assert.equal("- jwt https://env.example mine p", load_with(environment, { token = "mine" }))
    assert.equal("- jwt https://other.example mine -",
      load_with(environment, { token = "mine", url = "https://other.example" }))
    assert.equal("environment jwt https://env.example t -", load_with(environment, { project = false }))
    raises("auth", load_with, environment, { url = "https://other.example" })
    local problem = raises("auth", load_with, { CONTREE_URL = "https://env.example", CONTREE_TOKEN = "two words" })
    assert.is_nil(tostring(problem):find "two words")
    assert.truthy(problem.message:find "CONTREE_TOKEN")
  end)

  -- C15 to C17: events and times --------------------------------------------------------------------

  it("C15 SSE parser: split at any byte, CRLF, comments, several data lines, bad id, id-only frame, 4 MiB cap.",
    function()
      local text = ": keepalive\n\nid: 0\nevent: init\ndata: {\"a\":1}\n\nid: 1\r\nevent: stdout\r\ndata:  two\r\n"
        .. "data\r\ndata:three\r\n\r\n: note\nid: x7\nevent: odd\ndata: bad id\nfoo: bar\nretry: 3\n\nid: 5\n\n"
        .. "event: none\ndata:\n\n\n\ndata: last: one\n\nid: 9999999999999999999999\ndata: far\n\ndata: never ended\n"
      local expected = {
        { id = 0, event = "init", data = '{"a":1}' }, { id = 1, event = "stdout", data = " two\n\nthree" },
        { event = "odd", data = "bad id" }, { data = "last: one" }, { data = "far" },
      }
      local whole = sse.parser()
      assert.same(expected, whole:feed(text))
      assert.equal(5, whole.id)
      for cut = 1, #text - 1 do
        local parser = sse.parser()
        local frames = parser:feed(text:sub(1, cut))
        for _, frame in ipairs(parser:feed(text:sub(cut + 1))) do frames[#frames + 1] = frame end
        assert.same(expected, frames)
        assert.equal(5, parser.id)
      end
      local parser, frames = sse.parser(), {}
      for i = 1, #text do
        for _, frame in ipairs(parser:feed(text:sub(i, i))) do frames[#frames + 1] = frame end
      end
      assert.same(expected, frames)

      local most = sse.most_bytes
      local big = ("x"):rep(most - 6)
      assert.equal(most - 6, #sse.parser():feed("data: " .. big .. "\n\n")[1].data)
      parser = sse.parser()
      raises("protocol", parser.feed, parser, "data: " .. big .. "x\n\n")
      parser = sse.parser()
      raises("protocol", parser.feed, parser, "data: " .. big .. "x") -- the line may never end
      parser = sse.parser()
      raises("protocol", parser.feed, parser, ("data: y\n"):rep(most // 7 + 1))
      parser = sse.parser()
      for _ = 1, 100 do assert.same({}, parser:feed((": " .. ("z"):rep(65533) .. "\n"):rep(1))) end
    end)

  it("C16 Unknown event types and incomplete payloads are delivered raw.", function()
    serve [[
      return { pieces = { frame(0, "init", {}), frame(1, "weather", { rain = true, wind = null, deep = { a = null } }),
        frame(2, "exit", { code = 3 }),
        frame(3, "completion", { status = "SUCCESS", duration = 1.5, result_image = uuid(1) }) } }
    ]]
    local events <close> = follow.follow(new_api(), ID)
    assert.same({ id = 0, ts = "2026-09-04T12:00:01.5Z", spid = 1, type = "init", data = {} }, events:next())
    assert.same({ rain = true, deep = {} }, events:next().data)
    assert.same({ code = 3 }, events:next().data)
    assert.same({ status = "SUCCESS", duration = 1.5, result_image = "00000001-0000-4000-8000-000000000001" },
      events:next().data)
    assert.is_nil(events:next())
    assert.is_true(events.completed)
    stub:check()
  end)

  it("C17 Timestamps with 0 to 9 fraction digits.", function()
    local base = wire.moment "2026-09-04T12:00:01Z"
    assert.equal(1788523201, base)
    local digits = "123456789"
    for n = 1, 9 do
      local text = digits:sub(1, n)
      assert.equal(base + tonumber("0." .. text), wire.moment("2026-09-04T12:00:01." .. text .. "Z"))
      assert.equal(base + tonumber("0." .. text), wire.moment("2026-09-04T14:30:01." .. text .. "+02:30"))
    end
    assert.equal(base, wire.moment "2026-09-04T07:00:01-05:00")
    assert.equal(0, wire.moment "1970-01-01T00:00:00+00:00")
    assert.equal(951782400, wire.moment "2000-02-29T00:00:00Z")
    for _, text in ipairs { "", "now", "2026-13-01T00:00:00Z", "2026-00-10T00:00:00Z", "2026-01-32T00:00:00Z",
      "2026-01-01T24:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00.1234567890Z",
      "2026-01-01", "2026-01-01T00:00:00+0200" } do
      assert.is_nil(wire.moment(text))
    end
    assert.is_nil(wire.moment(nil))
    assert.equal("2026-09-04T12:00:01.250000Z", wire.rfc3339(base + 0.25))
    assert.equal("2026-09-04T12:00:02.000000Z", wire.rfc3339(base + 0.9999999))
    assert.equal("1970-01-01T00:00:00.000000Z", wire.rfc3339(0))
  end)

  -- C18 to C21: following ---------------------------------------------------------------------------

  -- Everything that a follower has to give: "id type" of each event.
  local function all_of(events)
    local list = {}
    for event in function() return events:next() end do list[#list + 1] = event.id .. " " .. event.type end
    return table.concat(list, ", ")
  end

  local function events_requests()
    local list = {}
    for _, entry in ipairs(stub:log()) do
      if entry.path:find "/events$" then list[#list + 1] = entry end
    end
    return list
  end

  it("C18 Follow: reconnect after `sse_error`, cut chunk, cut gzip, end of stream; header `Last-Event-Id` set; no "
    .. "event twice; stop at `completion`.", function()
      local ways = {
        sse_error = [[pieces = { zero .. one .. ": stream ended with error, retry since last event id\n\n"
          .. raw_frame(nil, "sse_error", "upstream event source closed unexpectedly") }]],
        cut = "pieces = { zero .. one .. frame(2, 'stdout', {}):sub(1, 30) }, cut = true",
        reset = "pieces = { zero .. one, 0.01 }, cut = true, reset = true",
        gzip = "pieces = { zero, one }, gzip = 'cut'",
        ended = "pieces = { zero .. one }",
        broken_json = "pieces = { zero .. one .. raw_frame(2, 'stdout', '{\"id\":2,') }",
        broken_event = "pieces = { zero .. one .. raw_frame(2, 'stdout', '{\"id\":2,\"type\":7}') }",
      }
      for name, way in pairs(ways) do
        serve(([[
          if request.path:find "/operations/[^/]*$" then return { json = { status = "EXECUTING" } } end
          state.count = (state.count or 0) + 1
          local zero, one = frame(0, "init", {}), frame(1, "spawn", {})
          if state.count == 1 then return { %s } end
          -- what is sent twice is heard once
          return { pieces = { one .. raw_frame(1, "spawn", "{}"), frame(2, "exit", {}) .. frame(3, "shutdown", {}),
            frame(4, "completion", { status = "SUCCESS" }) .. frame(5, "init", {}) }, stall = true }
        ]]):format(way))
        local events <close> = follow.follow(new_api(), ID)
        assert.equal("0 init, 1 spawn, 2 exit, 3 shutdown, 4 completion", all_of(events), name)
        assert.is_nil(events:next())
        local requests = events_requests()
        assert.equal(2, #requests, name)
        assert.is_nil(requests[1].headers["last-event-id"])
        assert.equal("follow=1", requests[1].query)
        assert.equal("1", requests[2].headers["last-event-id"], name)
        assert.equal("text/event-stream", requests[2].headers.accept)
        stub:check()
      end
      -- a filter and a beginning of the caller's; an id by itself counts
      serve [[
        if request.path:find "/operations/[^/]*$" then return { json = { status = "EXECUTING" } } end
        state.count = (state.count or 0) + 1
        if state.count == 1 then return { pieces = { frame(4, "stdout", {}, 2) .. "id: 6\n\n" } } end
        return { pieces = { frame(6, "stdout", {}, 2), frame(9, "completion", {}, 0) } }
      ]]
      local events <close> = follow.follow(new_api(), ID, { spid = 2, since = 3 })
      assert.equal("4 stdout, 9 completion", all_of(events))
      local requests = events_requests()
      assert.equal("follow=1&spid=2&since=3", requests[1].query)
      assert.is_nil(requests[1].headers["last-event-id"])
      assert.equal("6", requests[2].headers["last-event-id"])
      stub:check()
    end)

  it("C19 Follow: 410, 425, 5xx on connect honoured; 404 falls back to polling with a synthetic `completion`; 403 "
    .. "raised at once.", function()
      for _, status in ipairs { 410, 425, 429, 502, 504 } do
        serve(([[
          if request.path:find "/operations/[^/]*$" then return { json = { status = "PENDING" } } end
          state.count = (state.count or 0) + 1
          if state.count < 3 then
            return { status = %d, json = { error = "wait" }, headers = { ["Retry-After"] = "0.01" } }
          end
          return { pieces = { frame(0, "completion", { status = "SUCCESS" }) } }
        ]]):format(status))
        local events <close> = follow.follow(new_api(), ID)
        assert.equal("0 completion", all_of(events))
        assert.equal(3, #events_requests())
        stub:check()
      end
      for _, status in ipairs { 400, 404, 405, 406 } do
        serve(([[
          if request.path:find "/events$" then return { status = %d, json = { error = "no events" } } end
          state.count = (state.count or 0) + 1
          if state.count == 2 then return { status = 503, headers = { ["Retry-After"] = "0" } } end
          if state.count < 4 then
            return { json = { status = "EXECUTING" }, headers = { ["Retry-After"] = "0.01" } }
          end
          return { json = { status = "FAILED", error = "no worker", duration = 2.7504, image_size = 77,
            result = { image = uuid(2) } } }
        ]]):format(status))
        local events <close> = follow.follow(new_api(), ID)
        local event = events:next()
        assert.is_true(event.synthetic)
        assert.same({ 0, "completion" }, { event.id, event.type })
        assert.same({ status = "FAILED", duration_ms = 2750, error = "no worker", image_size_bytes = 77,
          result_image_uuid = "00000002-0000-4000-8000-000000000002" }, event.data)
        assert.equal("FAILED", events.operation.status)
        assert.is_nil(events:next())
        assert.equal(1, #events_requests())
        stub:check()
      end
      -- it comes after what there was
      serve [[
        if request.path:find "/operations/[^/]*$" then
          return { json = { status = state.done and "SUCCESS" or "EXECUTING" } }
        end
        state.count = (state.count or 0) + 1
        if state.count == 1 then return { pieces = { frame(7, "spawn", {}) } } end
        state.done = true
        return { status = 404, json = { error = "no such log" } }
      ]]
      local after <close> = follow.follow(new_api(), ID)
      assert.equal("7 spawn, 8 completion", all_of(after))
      for status, kind in pairs { [401] = "auth", [403] = "denied", [409] = "state" } do
        serve(("return { status = %d, json = { error = 'no' } }"):format(status))
        local events <close> = follow.follow(new_api(), ID)
        raises(kind, events.next, events)
        raises(kind, events.next, events)
        assert.equal(1, #stub:log())
      end
      -- neither events nor the operation
      serve "return { status = 404, json = { error = 'unknown operation' } }"
      local nothing <close> = follow.follow(new_api(), ID)
      raises("not_found", nothing.next, nothing)
    end)

  it("C20 Deadline holds against silent streams, endless keepalives, hanging status calls, large `Retry-After`.",
    function()
      local ways = {
        silent = "return { pieces = { frame(0, 'init', {}) }, stall = true }",
        keepalives = "return { pieces = { frame(0, 'init', {}) }, every = { 0.005, ': keepalive\\n\\n' } }",
        mute = "return { hang = true }",
        status = "return request.path:find '/events$' and { pieces = { frame(0, 'init', {}) } } or { hang = true }",
        polling = "return request.path:find '/events$' and { status = 404 } or { hang = true }",
        patient = "return { status = 425, headers = { ['Retry-After'] = '3600' } }",
        waiting = "return request.path:find '/events$' and { status = 404 } or { json = { status = 'PENDING' },"
          .. " headers = { ['Retry-After'] = '3600' } }",
        flood = "return request.path:find '/events$' and { pieces = {} } or { json = { status = 'PENDING' } }",
      }
      for name, way in pairs(ways) do
        serve(way)
        local began = core.now()
        local events <close> = follow.follow(new_api(), ID, { deadline = began + 0.2 })
        local problem = raises("timeout", function() repeat local event = events:next() until not event end)
        local took = core.now() - began
        assert.equal("events", problem.op, name)
        assert.truthy(took >= 0.2 and took < 1.2, ("%s took %f s"):format(name, took))
        raises("timeout", events.next, events)
        -- the same with a deadline of the caller's
        local others <close> = follow.follow(new_api(), ID)
        problem = raises("timeout", core.deadline, 0.1, function()
          repeat local event = others:next() until not event
        end)
        assert.equal("deadline", problem.op, name)
      end
      -- calls
      serve "return { status = 503, headers = { ['Retry-After'] = '60' } }"
      local began = core.now()
      local problem = raises("api", operations.get, new_api(), ID, { deadline = core.now() + 5 })
      assert.equal(503, problem.status)
      assert.truthy(core.now() - began < 1) -- there is no time for another: what is the use of waiting?
      problem = raises("timeout", core.deadline, 0.1, operations.get, new_api(), ID)
      assert.equal(503, problem.cause.status)
      serve "return { hang = true }"
      raises("timeout", operations.get, new_api(), ID, { timeout = 0.1 })
      raises("timeout", operations.wait, new_api(), ID, { deadline = core.now() + 0.1 })
      serve "return { json = { status = 'EXECUTING' }, headers = { ['Retry-After'] = '60' } }"
      raises("timeout", operations.wait, new_api(), ID, { deadline = core.now() + 0.1 })
    end)

  it("C21 Streams close their connection when the caller stops early, without breaking the client.", function()
    serve [[
      if request.path:find "/events$" then return { pieces = { frame(0, "init", {}) }, stall = true } end
      return { json = { status = "EXECUTING" } }
    ]]
    local api = new_api()
    do
      local events <close> = follow.follow(api, ID)
      assert.equal("init", events:next().type)
    end
    stub:wait "local log = ... return log[1].aborted"
    local events = follow.follow(api, ID)
    assert.equal("init", events:next().type)
    core.run(function()
      local task = core.spawn(events.next, events)
      core.sleep(0.01)
      events:close()
      raises("closed", task.wait, task)
    end)
    events:close()
    raises("closed", events.next, events)
    stub:wait "local log = ... return log[2].aborted"
    assert.equal("EXECUTING", operations.get(api, ID).status)
    -- one that was forgotten
    follow.follow(api, ID):next()
    collectgarbage()
    collectgarbage()
    core.step(0)
    stub:wait "local log = ... return log[4].aborted"
    stub:check()
  end)

  -- C22 to C30 ---------------------------------------------------------------------------------------

  it("C22 Stream decode: base64, ascii, broken base64 gives empty, split multi-byte characters joined.", function()
    assert.equal("hé", wire.bytes { value = "aMOp", encoding = "base64" })
    assert.equal("plain\n", wire.bytes { value = "plain\n", encoding = "ascii" })
    assert.equal("no encoding", wire.bytes { value = "no encoding" })
    assert.equal("é", wire.bytes { value = "é", encoding = "utf-8" })
    assert.equal("", wire.bytes { value = "a*b=", encoding = "base64" })
    assert.equal("", wire.bytes { value = "abc", encoding = "base64" })
    assert.equal("", wire.bytes(nil))
    assert.equal("", wire.bytes {})
    local halves = { { value = "ww==", encoding = "base64" }, { value = "qQ==", encoding = "base64" } }
    assert.equal("é", wire.bytes(halves[1]) .. wire.bytes(halves[2]))
    assert.same({ value = "a\tb\r\n~", encoding = "ascii" }, wire.stream "a\tb\r\n~")
    assert.same({ value = "", encoding = "ascii" }, wire.stream "")
    for _, bytes in ipairs { "é", "\0", "\127", "\27[0m", "\xff" } do
      local stream = wire.stream(bytes)
      assert.equal("base64", stream.encoding)
      assert.equal(bytes, wire.bytes(stream))
    end
  end)

  it("C23 Dedup upload: digest from the current offset, upload only on 404, unseekable goes straight up.", function()
    -- the parts of it; the files of the driver put them together
    serve [[
      if request.method == "POST" then
        return { status = 201, json = { uuid = uuid(9), sha256 = ("0"):rep(64), size = #request.body } }
      end
      return state.known and { json = { uuid = uuid(8) } } or { status = 404, json = { error = "unknown" } }
    ]]
    local api = new_api()
    local digest = core.sha256 "tail"
    local problem = raises("not_found", api.call, api, { op = "files", path = "/files/" .. digest })
    assert.equal(404, problem.status)
    local path = scratch.file "head and tail"
    local answer = api:call { op = "files", method = "POST", path = "/files", body = { path = path, offset = 9 } }
    assert.equal(4, answer.json.size)
    local entry = last_request()
    assert.same({ "tail", "application/octet-stream" }, { entry.body, entry.headers["content-type"] })
    stub:check()
  end)

  it("C24 Paging stops on a short page, trims the last page to the remaining budget, rejects page sizes outside "
    .. "1..1000.", function()
      local function walk(filter)
        serve [[
          local limit, offset = tonumber(request.params.limit), tonumber(request.params.offset or 0)
          local items = array {}
          for i = offset + 1, math.min(offset + limit, 25) do items[#items + 1] = { uuid = uuid(i) } end
          return { json = items }
        ]]
        local count, last = 0, nil
        for operation in operations.list(new_api(), filter) do
          count, last = count + 1, operation
        end
        local queries = {}
        for i, entry in ipairs(stub:log()) do queries[i] = entry.query end
        stub:check()
        return count, last and tonumber(last.uuid:sub(1, 8), 16), table.concat(queries, " ")
      end
      assert.same({ 25, 25, "limit=1000" }, { walk() })
      assert.same({ 25, 25, "limit=10 limit=10&offset=10 limit=10&offset=20" }, { walk { page = 10 } })
      assert.same({ 25, 25, "limit=5 limit=5&offset=5 limit=5&offset=10 limit=5&offset=15 limit=5&offset=20 "
        .. "limit=5&offset=25" }, { walk { page = 5 } })
      assert.same({ 12, 12, "limit=10 limit=2&offset=10" }, { walk { page = 10, number = 12 } })
      assert.same({ 3, 3, "limit=3" }, { walk { number = 3 } })
      assert.equal(0, (walk { number = 0 }))
      assert.equal(0, #stub:log())
      for _, page in ipairs { 0, 1001, -1, 1.5, "10" } do
        raises("invalid", operations.list, new_api(), { page = page })
      end
      for _, number in ipairs { -1, 0 / 0, "x" } do
        raises("invalid", operations.list, new_api(), { number = number })
      end
      -- a listing that grows meanwhile; one that knows no offset
      serve [[
        state.count = (state.count or 0) + 1
        local items, from = array {}, state.count == 1 and 1 or 2
        for i = from, from + 1 do items[#items + 1] = { uuid = uuid(i) } end
        return { json = items }
      ]]
      local seen = {}
      for operation in operations.list(new_api(), { page = 2 }) do seen[#seen + 1] = operation.uuid:sub(8, 8) end
      assert.equal("123", table.concat(seen))
    end)

  it("C25 Wait returns the terminal operation; non-zero exit code with `SUCCESS` is not an API error.", function()
    serve [[
      state.count = (state.count or 0) + 1
      if state.count < 3 then
        return { json = { status = state.count == 1 and "PENDING" or "SOMETHING_NEW" },
          headers = { ["Retry-After"] = "0.01" } }
      end
      return { json = { status = "SUCCESS", metadata = { result = { state = { exit_code = 2, signal = -1 } } } } }
    ]]
    local polls = {}
    local operation = operations.wait(new_api(), ID, { on_poll = function(found) polls[#polls + 1] = found.status end })
    assert.equal("SUCCESS", operation.status)
    assert.equal(2, operations.process_result(operation).state.exit_code)
    assert.same({ "PENDING", "SOMETHING_NEW" }, polls)
    assert.same({ state = { exit_code = 5 } }, operations.process_result { result = { exit_code = 5 } })
    assert.is_nil(operations.process_result { status = "FAILED" })
    for _, status in ipairs { "SUCCESS", "FAILED", "CANCELLED" } do assert.is_true(operations.is_terminal(status)) end
    for _, status in ipairs { "PENDING", "ASSIGNED", "EXECUTING", "success", "" } do
      assert.is_false(operations.is_terminal(status))
    end
    stub:check()
  end)

  it("C26 Result image read from `result_image_uuid` or `result.image`.", function()
    assert.equal("a", operations.result_image { result_image_uuid = "a", result = { image = "b" } })
    assert.equal("b", operations.result_image { result = { image = "b" } })
    assert.is_nil(operations.result_image { result = {} })
    assert.is_nil(operations.result_image {})
  end)

  it("C27 Subprocess end detected by exit code or signal, never by exit code alone.", function()
    serve [[
      if request.method == "POST" then return { status = 201, json = { spid = 2 } } end
      return { json = { state = { exit_code = -1, signal = 9 } } }
    ]]
    local api = new_api()
    local spid = operations.subprocess(api, ID, { command = "cat", stdin = { value = "", close = false } })
    assert.equal(2, spid)
    assert.equal("integer", math.type(spid))
    assert.is_true(operations.has_ended(operations.subprocess_result(api, ID, spid).state))
    assert.is_true(operations.has_ended { exit_code = 0, signal = -1 })
    assert.is_true(operations.has_ended { exit_code = 3 })
    assert.is_false(operations.has_ended { exit_code = -1, signal = -1 })
    assert.is_false(operations.has_ended { exit_code = -1, signal = 0 })
    assert.is_false(operations.has_ended {})
    assert.is_false(operations.has_ended(nil))
    serve "return { status = 201, json = { spid = 'two' } }"
    raises("protocol", operations.subprocess, api, ID, { command = "cat" })
    stub:check()
  end)

  it("C28 Cancel: 409 treated as already finished.", function()
    serve "return { status = 409, json = { error = 'operation is not cancellable', status = 409 } }"
    local api = new_api()
    assert.is_false(operations.cancel(api, ID))
    assert.is_false(operations.signal(api, ID, 2, "TERM"))
    assert.is_false(operations.stdin(api, ID, 2, "late", false))
    serve "return { status = 202 }"
    assert.is_true(operations.cancel(api, ID))
    assert.is_true(operations.signal(api, ID, 2, "TERM"))
    assert.equal("signal=TERM", last_request().query)
    assert.is_true(operations.stdin(api, ID, 2, "\0", true))
    assert.equal('{"close":true,"encoding":"base64","value":"AA=="}', last_request().body)
    serve "return { status = 404, json = { error = 'unknown' } }"
    raises("not_found", operations.cancel, api, ID)
    stub:check()
  end)

  it("C29 Unknown response fields and absent optional fields do not fail.", function()
    serve [[
      if request.path == "/whoami" then
        return { json = { token_uuid = "t", token_expiration = null, permissions = { list = true, fly = false },
          operations_stat = {}, colour = "red" } }
      end
      return { json = { status = "SUCCESS", error = null, metadata = null, new_field = { 1, { 2 } },
        result = { image = null } } }
    ]]
    local api = new_api()
    local identity = api:whoami()
    assert.is_nil(identity.token_expiration)
    assert.same({}, identity.limits)
    assert.is_true(identity.permissions.list)
    assert.equal(identity, api:whoami())
    assert.not_equal(identity, api:whoami(true))
    local operation = operations.get(api, ID)
    assert.is_nil(operation.error)
    assert.is_nil(operation.metadata)
    assert.same({}, operation.result)
    assert.equal(ID, operation.uuid)
    -- but the shape must be right
    for body, what in pairs { ["null"] = "neither", ["[]"] = "not an object", ['"x"'] = "neither", ["{"] = "not JSON",
      [""] = "without a body", ["<html>"] = "not JSON", [("["):rep(100)] = "deep" } do
      serve(("return { body = %q, headers = { ['Content-Type'] = 'application/json' } }"):format(body))
      local problem = raises("protocol", operations.get, api, ID)
      assert.truthy(problem.message:find(what, 1, true), problem.message)
    end
    serve "return { json = {} }"
    raises("protocol", operations.get, api, ID)
    stub:check()
  end)

  it("C30 Secrets redacted in logs.", function()
    local said = {}
    local function log(level, message, fields)
      said[#said + 1] = level .. " " .. message .. " " .. wire.encode(fields)
    end
    serve [[
      state.count = (state.count or 0) + 1
      if state.count == 1 then return { status = 503, json = { error = "bad token stub-token-0123456789" } } end
      return { json = { token_uuid = "t", token_expiration = os.time() + 60, permissions = {} },
        headers = { ["Set-Cookie"] = "a=b" } }
    ]]
    local api = new_api { log = log, project = "p" }
    api:whoami()
    api:log("info", "token " .. TOKEN, { Authorization = "Bearer x", nested = { my_PASSWORD = "hunter2", user = "u" },
      ["X-Api-Key"] = "hunter2", db_credentials = { "hunter2" }, token_uuid = "t" })
    local text = table.concat(said, "\n")
    assert.is_nil(text:find(TOKEN, 1, true))
    assert.is_nil(text:find "hunter2")
    assert.is_nil(text:find "Bearer x")
    assert.truthy(text:find "trying again in")
    assert.truthy(text:find "warning the token expires in %d+ s")
    assert.truthy(text:find('"token_uuid":"t"', 1, true))
    assert.truthy(text:find('"user":"u"', 1, true))
    assert.equal("contree api at " .. stub.host, tostring(api))
    assert.is_true(wire.is_secret "Proxy-Authorization")
    assert.is_false(wire.is_secret "tokens_used")
    local shown = {}
    for _, entry in ipairs { raises("api", function()
      serve "return { status = 500, body = 'Bearer stub-token-0123456789' }"
      operations.get(new_api { retry = false }, ID)
    end) } do
      for name, value in pairs(entry) do shown[#shown + 1] = name .. tostring(value) end
    end
    assert.is_nil(table.concat(shown, " "):find(TOKEN, 1, true))
  end)

  -- Beyond the list: calls ----------------------------------------------------------------------------

  it("makes many calls at once over a bounded number of connections, each in its turn", function()
    serve "return { json = { status = 'SUCCESS' }, delay = 0.002 }"
    local api = new_api { max_calls = 8 }
    core.run(function()
      local tasks = {}
      for i = 1, 200 do tasks[i] = core.spawn(operations.get, api, ID) end
      for _, task in ipairs(tasks) do assert.equal("SUCCESS", task:wait().status) end
    end)
    local log, most = stub:log(), 0
    for _, entry in ipairs(log) do
      local count = 0
      for _, other in ipairs(log) do
        if other.at <= entry.at and other.ended > entry.at then count = count + 1 end
      end
      most = math.max(most, count)
    end
    assert.equal(200, #log)
    assert.truthy(most <= 8 and most >= 4, most)
  end)

  it("gives the turn of one who is cancelled to the next", function()
    serve "return request.path:find '/hang' and { hang = true } or { json = { status = 'SUCCESS' } }"
    local api = new_api { max_calls = 1 }
    core.run(function()
      local first = core.spawn(operations.get, api, "hang")
      stub:wait "local log = ... return #log == 1"
      local second, third = core.spawn(operations.get, api, ID), core.spawn(operations.get, api, ID)
      core.sleep(0)
      second:cancel()
      raises("cancelled", second.wait, second)
      first:cancel()
      assert.equal("SUCCESS", third:wait().status)
      raises("cancelled", first.wait, first)
      assert.equal("SUCCESS", operations.get(api, ID).status)
      -- closed under those who wait
      local hanging, waiting = core.spawn(operations.get, api, "hang"), core.spawn(operations.get, api, ID)
      stub:wait "local log = ... return #log == 4"
      api:close()
      raises("closed", hanging.wait, hanging)
      raises("closed", waiting.wait, waiting)
    end)
    raises("closed", operations.get, api, ID)
    assert.equal(("contree api at %s (closed)"):format(stub.host), tostring(api))
    api:close()
  end)

  it("tries again only so often, all calls together", function()
    serve "return { status = 503 }"
    local api = new_api { retry = { attempts = 2, pauses = { 0 }, per_second = 100 } }
    local began = core.now()
    core.run(function()
      local tasks = {}
      for i = 1, 150 do tasks[i] = core.spawn(operations.get, api, ID) end
      for _, task in ipairs(tasks) do raises("api", task.wait, task) end
    end)
    assert.equal(300, #stub:log())
    assert.truthy(core.now() - began > 0.45, "a hundred at once, and then a hundred each second")
  end)

  it("bounds what an answer may hold", function()
    serve [[
      if request.params.inflight then return { status = 500, body = ("x"):rep(3 << 20) } end
      return { json = { status = "SUCCESS", error = ("x"):rep(100000) } }
    ]]
    local api = new_api { retry = false }
    local path = "/operations/" .. ID
    local problem = raises("resource", api.call, api, { op = "get", path = path, max_bytes = 1000 })
    assert.equal("get", problem.op)
    problem = raises("api", operations.get, api, ID, { inflight = true })
    assert.truthy(#problem.message < 700)
    problem = raises("api", api.open, api, { op = "get", path = path, query = { { "inflight", true } } })
    assert.truthy(#problem.message < 700)
    stub:wait "local log = ... return log[3].aborted or log[3].done"
    assert.is_nil(wire.decode(("["):rep(5 << 20)))
    assert.is_nil(wire.decode("[" .. ("[],"):rep(3 << 20) .. "[]]"))
  end)

  it("does not wait longer than a call may take, nor for hours", function()
    serve "return { status = 425, headers = { ['Retry-After'] = '7200' } }"
    local path = scratch.file "x"
    local began = core.now()
    raises("busy", operations.spawn, new_api(), { command = "a", image = "tag:b" })
    raises("busy", function()
      local api = new_api()
      api:call { op = "upload", method = "POST", path = "/files", body = { path = path } }
    end)
    assert.truthy(core.now() - began < 5)
    assert.equal(2, #stub:log())
    raises("invalid", new_api, { timeout = 0 })
    raises("invalid", new_api, { timeout = 0 / 0 })
    raises("invalid", new_api, { retry = { attempts = 0 } })
    raises("invalid", new_api, { retry = { attempts = 1.5 } })
    raises("invalid", new_api, { retry = { pauses = {} } })
    raises("invalid", new_api, { retry = { pauses = { -1 } } })
    raises("invalid", new_api, { retry = { pauses = { 1 / 0 } } })
    raises("invalid", new_api, { retry = { often = true } })
    raises("invalid", new_api, { colour = "red" })
    assert.has_error(function() new_api():call { op = "x", path = "/whoami", colour = "red" } end)
  end)

  it("begins a download into a file anew when it is cut", function()
    serve [[
      state.count = (state.count or 0) + 1
      return { pieces = { ("abc"):rep(10000) }, cut = state.count < 3, gzip = true }
    ]]
    local path = scratch.dir "download" .. "/file"
    local sink <close> = core.sink(path)
    local told = 0
    local answer = new_api():call {
      op = "download", path = ("/inspect/%s/download"):format(ID), query = { { "path", "/x" } }, sink = sink,
      on_transfer = function(bytes) told = bytes end,
    }
    assert.equal(200, answer.status)
    assert.is_nil(answer.json)
    assert.equal(core.sha256(("abc"):rep(10000)), sink:sha256())
    assert.truthy(told > 0)
    assert.equal(3, #stub:log())
    stub:check()
  end)

  it("works where tasks stand still: in a comparator, and in services", function()
    serve [[
      if request.path:find "/events$" then
        state.count = (state.count or 0) + 1
        if state.count == 1 then return { pieces = { frame(0, "init", {}), 0.01 } } end
        return { gzip = true, pieces = { frame(1, "stdout", { value = "x" }), 0.01, frame(2, "completion", {}) } }
      end
      return { json = { status = "EXECUTING" } }
    ]]
    local api = new_api { max_calls = 2 }
    local list
    core.run(function()
      core.spawn(function()
        table.sort({ 2, 1 }, function(a, b)
          if not list then
            local events <close> = follow.follow(api, ID)
            list = all_of(events)
            assert.equal("EXECUTING", operations.get(api, ID).status)
          end
          return a < b
        end)
      end):wait()
      assert.equal("0 init, 1 stdout, 2 completion", list)
      assert.equal("EXECUTING", core.service(operations.get, api, ID):wait().status)
    end)
  end)

  -- Beyond the list: following ------------------------------------------------------------------------

  describe("a follower", function()
    local times

    before_each(function()
      times = {}
      for name, value in pairs(follow.times) do times[name] = value end
      follow.times.pauses, follow.times.barren_pauses, follow.times.drain_pause = { 0.001 }, { 0.001 }, 0.001
    end)

    after_each(function()
      for name, value in pairs(times) do follow.times[name] = value end
    end)

    it("loses nothing and hears nothing twice wherever the stream is cut", function()
      serve [[
        if request.path:find "/operations/[^/]*$" then return { json = { status = "EXECUTING" } } end
        state.count = (state.count or 0) + 1
        local frames = { ": hello\n\n", frame(0, "init", {}), frame(1, "stdout", { value = "a" }), ": keepalive\n\n",
          frame(2, "completion", {}) }
        local last = tonumber(request.headers["last-event-id"] or -1)
        if state.count % 2 == 0 then -- the rest of it
          local rest = {}
          for i = 0, 2 do
            local at = ({ [0] = 2, 3, 5 })[i]
            if i > last then rest[#rest + 1] = frames[at] end
          end
          return { pieces = { table.concat(rest) } }
        end
        local text, at = table.concat(frames), (state.count - 1) // 2
        if at == 0 then return { pieces = {}, cut = true } end
        return { pieces = { text:sub(1, at) }, cut = true }
      ]]
      local api = new_api()
      for at = 0, 375 do
        local events <close> = follow.follow(api, ID)
        assert.equal("0 init, 1 stdout, 2 completion", all_of(events), at)
      end
      stub:check()
    end)

    it("loses nothing to those who give up waiting", function()
      serve [[
        if request.path:find "/operations/[^/]*$" then return { json = { status = "EXECUTING" } } end
        state.count = (state.count or 0) + 1
        local pieces, from = {}, tonumber(request.headers["last-event-id"] or -1) + 1
        for i = from, math.min(from + 10, 59) do
          local text = frame(i, "stdout", { value = tostring(i) })
          pieces[#pieces + 1] = text:sub(1, 40)
          pieces[#pieces + 1] = 0.003
          pieces[#pieces + 1] = text:sub(41)
        end
        if from >= 60 then pieces[1] = frame(60, "completion", {}) end
        return { pieces = pieces, gzip = state.count % 2 == 0 }
      ]]
      local events <close> = follow.follow(new_api(), ID)
      local got, given_up = {}, 0
      core.run(function()
        local over = false
        while not over do
          local good, problem = pcall(core.deadline, 0.002, function()
            local task <close> = core.spawn(function() -- leaving cancels it
              for event in function() return events:next() end do got[#got + 1] = event.id end
              over = true
            end)
            task:wait()
          end)
          if not good then
            assert.equal("timeout", problem.kind)
            given_up = given_up + 1
          end
        end
      end)
      assert.equal(61, #got)
      for i = 0, 60 do assert.equal(i, got[i + 1]) end
      assert.truthy(given_up > 10)
    end)

    it("does not sit before a silent stream, nor before one that only keeps alive", function()
      follow.times.silence, follow.times.quiet = 0.1, 0.1
      serve [[
        if request.path:find "/operations/[^/]*$" then
          return { json = { status = state.finished and "CANCELLED" or "EXECUTING" } }
        end
        state.count = (state.count or 0) + 1
        if state.count == 1 then return { pieces = { frame(0, "init", {}) }, stall = true } end
        if state.count == 2 then
          return { pieces = { frame(1, "spawn", {}) }, every = { 0.02, ": keepalive\n\n" } }
        end
        return { pieces = { frame(2, "stdout", {}) } }
      ]]
      local api = new_api()
      local events <close> = follow.follow(api, ID)
      assert.equal("init", events:next().type)
      assert.equal("spawn", events:next().type)
      core.run(function()
        local next_one = core.spawn(events.next, events)
        stub:wait [[local count = 0
          for _, entry in ipairs(...) do count = count + (entry.path:find "/operations/[^/]*$" and 1 or 0) end
          return count >= 3]]
        raises("state", events.next, events)
        next_one:cancel()
        raises("cancelled", next_one.wait, next_one)
      end)
      -- it ends without a word: the rest of the log is read before that is believed
      stub:handle [[return function(request)
        if request.path:find "/operations/[^/]*$" then return { json = { status = "CANCELLED" } } end
        if request.query == "follow=1" then
          return { pieces = { frame(1, "spawn", {}) }, every = { 0.02, ": keepalive\n\n" } }
        end
        return { pieces = { frame(2, "stdout", {}) } }
      end]]
      local others <close> = follow.follow(api, ID)
      assert.equal("1 spawn, 2 stdout", all_of(others))
      assert.is_true(others.drained)
      assert.is_false(others.completed)
      assert.equal("CANCELLED", others.operation.status)
      local requests = events_requests()
      assert.same({ "", "1" }, { requests[2].query, requests[2].headers["last-event-id"] })
      stub:check()
    end)

    it("reads the rest of the log of what has finished, as far as there is one", function()
      follow.times.drain = 0.5
      for rest, expected in pairs {
        ["{ status = 410, headers = { ['Retry-After'] = '0.001' } }"] = { "0 init", 3, false },
        ["{ status = 410, headers = { ['Retry-After'] = '60' } }"] = { "0 init", 1, false },
        ["{ status = 502 }"] = { "0 init", 3, false }, ["{ status = 404 }"] = { "0 init", 1, false },
        ["{ status = 403 }"] = { "0 init", 1, false }, ["{ pieces = {} }"] = { "0 init", 1, true },
        ["{ pieces = {}, cut = true }"] = { "0 init", 3, false },
        ["{ pieces = { raw_frame(nil, 'sse_error', 'lost') } }"] = { "0 init", 3, false },
        ["{ pieces = { frame(1, 'exit', {}), frame(2, 'completion', {}) } }"] =
          { "0 init, 1 exit, 2 completion", 1, true },
        ["{ pieces = { request.headers['last-event-id'] == '0' and frame(1, 'exit', {}) or ':\\n' }, cut = true }"] =
          { "0 init, 1 exit", 3, false },
      } do
        serve(([[
          if request.path:find "/operations/[^/]*$" then return { json = { status = "SUCCESS" } } end
          if request.query == "follow=1" then return { pieces = { frame(0, "init", {}) } } end
          return %s
        ]]):format(rest))
        local events <close> = follow.follow(new_api(), ID)
        assert.equal(expected[1], all_of(events), rest)
        assert.equal(expected[2] + 1, #events_requests(), rest)
        assert.equal(expected[3], events.drained, rest)
        assert.equal("SUCCESS", events.operation.status)
        stub:check()
      end
    end)

    it("gives up on what makes no sense, and on a service that is gone", function()
      for what, kind in pairs {
        ["{ pieces = { raw_frame(0, 'init', '{') } }"] = "protocol",
        ["{ pieces = { raw_frame(0, 'init', '{\"id\":0}') } }"] = "protocol",
        ["{ body = '<html>', headers = { ['Content-Type'] = 'text/html' } }"] = "protocol",
        ["{ pieces = { 'data: ' .. ('x'):rep(5 * 1024 * 1024) } }"] = "protocol",
      } do
        serve(([[
          if request.path:find "/operations/[^/]*$" then return { json = { status = "EXECUTING" } } end
          return %s
        ]]):format(what))
        local events <close> = follow.follow(new_api(), ID)
        raises(kind, events.next, events)
        raises(kind, events.next, events)
      end
      -- what is no object is no event
      serve [[return { pieces = { raw_frame(0, "x", "[1]"), raw_frame(1, "x", "7"), raw_frame(2, "x", "null"),
        frame(3, "completion", {}) } }]]
      local odd <close> = follow.follow(new_api(), ID)
      assert.equal("3 completion", all_of(odd))
      follow.times.patience = 0.05
      local other = contree_stub.start()
      other:handle "return function() return { pieces = { frame(0, 'init', {}) }, stall = true } end"
      local events <close> = follow.follow(new_api { url = other.url }, ID)
      assert.equal("init", events:next().type)
      other:stop()
      raises("transport", events.next, events)
      raises("transport", events.next, events)
    end)

    it("takes a large event that comes in small pieces, and many at once", function()
      serve [[
        local text = frame(0, "stdout", { value = ("x"):rep(3 * 1024 * 1024), encoding = "ascii" })
        local pieces = {}
        for at = 1, #text, 65521 do pieces[#pieces + 1] = text:sub(at, at + 65520) end
        local many = {}
        for i = 1, 20000 do many[i] = frame(i, "stdout", { value = tostring(i), encoding = "ascii" }) end
        many[#many + 1] = frame(20001, "completion", {})
        pieces[#pieces + 1] = table.concat(many)
        return { pieces = pieces }
      ]]
      local events <close> = follow.follow(new_api(), ID)
      assert.equal(3 * 1024 * 1024, #wire.bytes(events:next().data))
      for i = 1, 20000 do
        local event = events:next()
        if wire.bytes(event.data) ~= tostring(i) then error("event " .. i) end
      end
      assert.equal("completion", events:next().type)
    end)

    it("is one of hundreds on one thread", function()
      serve [[
        return { gzip = true, pieces = { frame(0, "init", {}), frame(1, "stdout", { value = "x" }), 0.2,
          frame(2, "completion", {}) } }
      ]]
      local api = new_api()
      local count = 0
      core.run(function()
        local tasks = {}
        for i = 1, 300 do
          tasks[i] = core.service(function()
            local events <close> = follow.follow(api, ID)
            for _ in function() return events:next() end do count = count + 1 end
          end)
        end
        for _, task in ipairs(tasks) do task:wait() end
      end)
      assert.equal(900, count)
    end)
  end)

  -- The schema -----------------------------------------------------------------------------------------

  describe("the schema", function()
    local headers = { authorization = "Bearer t", ["accept-encoding"] = "gzip", ["user-agent"] = "u", host = "h" }

    local function with(more)
      local all = {}
      for name, value in pairs(headers) do all[name] = value end
      for name, value in pairs(more or {}) do all[name] = value end
      return all
    end

    local json = with { ["content-type"] = "application/json", ["content-length"] = "1" }
    local digest = ("a"):rep(64)

    local function check(line, body)
      local method, target = line:match "^(%S+) (.*)$"
      target = target:gsub("UUID", ID):gsub("SHA", digest)
      local given = body and json or headers
      if target == "/files" and method == "POST" then
        given = with { ["content-type"] = "application/octet-stream", ["transfer-encoding"] = "chunked" }
      elseif target:find "/events" then
        given = with { accept = "text/event-stream" }
      end
      return schema.check(method, "/base/v1" .. target, given, body or "")
    end

    it("knows the twenty-six operations", function()
      local seen = {}
      for _, request in ipairs {
        { "GET /whoami" }, { "GET /images?limit=1&tagged=1&tag=a/b&since=15m&until=2026-01-01T00%3A00%3A00Z" },
        { "PATCH /images/UUID/tag", '{"tag":"a"}' }, { "DELETE /images/UUID/tag?tag=a%3Ab" },
        { "POST /images/import", '{"registry":{"url":"docker://docker.io/library/busybox:latest"},"tag":null}' },
        { "GET /files?offset=5" }, { "POST /files", "\0bytes" }, { "GET /files/SHA" }, { "HEAD /files/SHA" },
        { "POST /instances", '{"command":"a","image":"tag:b","files":{"/x":{"uuid":"UUID","mode":"0755"}}}' },
        { "GET /operations?status=FAILED&kind=instance" }, { "GET /operations/UUID?inflight=1" },
        { "DELETE /operations/UUID" }, { "GET /operations/UUID/events?follow=1&spid=2&since=-1" },
        { "POST /operations/UUID/subprocesses", '{"command":"a","args":["b"],"stdin":{"value":"","close":false}}' },
        { "GET /operations/UUID/subprocesses/1" }, { "DELETE /operations/UUID/subprocesses/2?signal=TERM" },
        { "POST /operations/UUID/subprocesses/2/stdin", '{"value":"AA==","encoding":"base64"}' },
        { "GET /inspect/?tag=a" }, { "GET /inspect/UUID/" }, { "GET /inspect/UUID/list?path=%2F" },
        { "GET /inspect/UUID/download?path=/a%20b" }, { "HEAD /inspect/UUID/download?path=/a" },
        { "GET /inspect/UUID/archive?path=/" }, { "HEAD /inspect/UUID/archive?path=/" },
        { "GET /inspect/UUID/grep?pattern=a&pattern=b&case=smart" },
      } do
        local good, what = check(request[1], request[2] and request[2]:gsub("UUID", ID))
        assert.is_true(good, what)
        seen[what] = true
      end
      for _, name in ipairs(schema.operations) do assert.is_true(seen[name], name) end
      assert.equal(26, #schema.operations)
    end)

    it("complains of what is not right", function()
      for _, request in ipairs {
        { "GET /whoami?x=1" }, { "PUT /whoami" }, { "GET /nowhere" }, { "GET /images?limit=0" }, { "GET /images?" },
        { "GET /images?limit=1&limit=2" }, { "GET /images?tagged=true" }, { "GET /images?tag=A" },
        { "GET /images?since=yesterday" }, { "GET /images?tag=a b" }, { "GET /files/short" },
        { "PATCH /images/UUID/tag", '{"tag":1}' }, { "PATCH /images/UUID/tag", "{}" }, { "PATCH /images/UUID/tag" },
        { "PATCH /images/UUID/tag", "[1]" }, { "PATCH /images/UUID/tag", "{" }, { "GET /operations/UUID", "{}" },
        { "POST /instances", '{"command":"a"}' }, { "POST /instances", '{"command":"a","image":"b"}' },
        { "POST /instances", '{"command":"a","image":"tag:b","timeout":1.5}' },
        { "POST /instances", '{"command":"a","image":"tag:b","shell":1}' },
        { "POST /instances", '{"command":"a","image":"tag:b","env":{"A":1}}' },
        { "POST /instances", '{"command":"a","image":"tag:b","limits":{}}' },
        { "POST /instances", '{"command":"a","image":"tag:b","truncate_output_at":10485761}' },
        { "POST /instances", '{"command":"a","image":"tag:b","stdin":{"value":"é"}}' },
        { "POST /instances", '{"command":"a","image":"tag:b","stdin":{"value":"A","encoding":"base64"}}' },
        { "POST /instances", '{"command":"a","image":"tag:b","files":{"x":{"uuid":"UUID"}}}' },
        { "POST /operations/UUID/subprocesses", '{"command":"a","timeout":5}' },
        { "POST /operations/UUID/subprocesses/2/stdin", ('{"value":"%s"}'):format(("x"):rep(524289)) },
        { "GET /operations/UUID/subprocesses/0" }, { "GET /operations/UUID/subprocesses/x" },
        { "GET /inspect/UUID" }, { "GET /inspect/UUID/list" }, { "GET /inspect/UUID/list?path=a" },
        { "GET /inspect/UUID/grep?path=/" }, { "GET /inspect/UUID/grep?pattern=a&before=-1" },
        { "GET /inspect/a%2fb/list?path=/" }, { "GET /inspect/a:b/list?path=/" },
        { "POST /images/import", '{"registry":{"url":"docker.io/x:1"}}' },
      } do
        local good, complaint = check(request[1], request[2] and request[2]:gsub("UUID", ID))
        assert.is_nil(good, request[1] .. " " .. (request[2] or ""):sub(1, 80))
        assert.truthy(#complaint > 10)
      end
      for _, given in ipairs { { authorization = "Basic x" }, { range = "bytes=0-" }, { expect = "100-continue" },
        { ["accept-encoding"] = "identity" }, { ["last-event-id"] = "1" }, { ["content-type"] = "application/json" },
        { project = "" }, { cookie = "a" }, { accept = "text/event-stream" } } do
        assert.is_nil((schema.check("GET", "/v1/whoami", with(given), "")))
      end
      assert.is_nil((schema.check("GET", "/whoami", headers, "")))
      assert.is_true((schema.check("GET", "/v1/whoami", headers, nil)))
    end)
  end)
end)
