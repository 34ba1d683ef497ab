--- The HTTP client of the core where connections, compression, proxies and redirects misbehave, and many at a time.

local core = require "bough.core"
local arena = require "spec.support.arena"
local daemon = require "spec.support.daemon"
local gzip = require "spec.support.gzip"
local proxy = require "spec.support.proxy"
local raises = require "spec.support.raises"
local registry = require "spec.support.registry"
local relay = require "spec.support.relay"
local scratch = require "spec.support.scratch"

local quote, sh = scratch.quote, scratch.sh

local function resident()
  local file <close> = assert(io.open "/proc/self/status")
  return math.tointeger(tonumber(file:read("a"):match "VmRSS:%s*(%d+)")) << 10
end

-- What comes next may come in any pieces.
local function take(stream, size)
  local text = ""
  while #text < size do text = text .. assert(stream:read(size - #text)) end
  return text
end

-- Says of an error value, and of what it would show, that no secret is in it.
local function keeps(problem, ...)
  for _, secret in ipairs { ... } do
    assert.is_nil(tostring(problem):find(secret, 1, true))
    assert.is_nil(problem.message:find(secret, 1, true))
  end
  return problem
end

describe("core.http", function()
  local server, client

  lazy_setup(function()
    server = proxy.start()
    client = core.http()
  end)

  lazy_teardown(function()
    client:close()
    server:stop()
  end)

  local function get(path, more)
    local request = { url = server.url .. path }
    for name, value in pairs(more or {}) do request[name] = value end
    return client:request(request)
  end

  local function open(path, more)
    local request = { url = server.url .. path }
    for name, value in pairs(more or {}) do request[name] = value end
    return client:open(request)
  end

  describe("a request that is sent once", function()
    -- The second request of a connection finds it closed, after it has been read.
    local DIES = [[return function(request, state)
      state.seen = state.seen or {}
      local seen = state.seen[request.connection]
      state.seen[request.connection] = true
      return seen and { raw = "" } or { body = "x" }
    end]]

    it("is not sent again when a reused connection dies under it", function()
      server:handle(DIES)
      local fresh <close> = core.http()
      assert.equal("x", fresh:request({ url = server.url .. "/first" }).body)
      local problem = raises("transport", fresh.request, fresh,
        { url = server.url .. "/spawn", method = "POST", body = "{}", once = true })
      assert.truthy(problem.message:find "not known")
      assert.is_true(problem.sent)
      assert.equal(2, #server:log())
      -- others are
      server:handle(DIES)
      local other <close> = core.http()
      other:request { url = server.url .. "/first" }
      assert.equal("x", other:request({ url = server.url .. "/again", method = "POST", body = "{}" }).body)
      assert.equal(3, #server:log())
    end)

    it("reads its file once as well", function()
      server:handle(DIES)
      local path = scratch.file(("x"):rep(100000))
      local fresh <close> = core.http()
      fresh:request { url = server.url .. "/first" }
      raises("transport", fresh.request, fresh,
        { url = server.url .. "/put", method = "PUT", body = { path = path }, once = true })
      assert.equal(2, #server:log())
    end)

    it("uses connections again like any other", function()
      server:handle [[return function() return { body = "x" } end]]
      local fresh <close> = core.http()
      for _ = 1, 5 do
        assert.equal("x", fresh:request({ url = server.url .. "/", method = "POST", body = "x", once = true }).body)
      end
      local log = server:log()
      assert.equal(5, #log)
      assert.equal(log[1].connection, log[5].connection)
    end)

    it("is still redirected, for that is another request", function()
      server:handle [[return function(request)
        if request.path == "/a" then return { status = 307, headers = { Location = "/b" } } end
        return { body = request.method .. request.body }
      end]]
      assert.equal("POSTx", get("/a", { method = "POST", body = "x", once = true, follow = 1 }).body)
    end)

    it("is known not to have been sent where there was no connection", function()
      local gone = proxy.start()
      gone:stop()
      local problem = raises("transport", client.request, client, { url = gone.url, once = true })
      assert.is_false(problem.sent)
      assert.is_false(raises("transport", client.request, client, { url = "http://no-such-host.invalid/" }).sent)
      server:handle [[return function() return { delay = 3600 } end]]
      assert.is_true(raises("timeout", get, "/", { timeout = 0.1 }).sent)
    end)

    it("is not sent again when a shared connection is lost", function()
      server:handle [[return function(request, state)
        if request.path == "/spawn" then return { delay = 3600 } end
        return { body = "x" }
      end]]
      local front = relay.tls(server.host)
      local trusting <close> = core.http { ca_file = front.ca_file }
      trusting:request { url = front.url .. "/first" }
      core.run(function()
        local task = core.spawn(trusting.request, trusting,
          { url = front.url .. "/spawn", method = "POST", body = "{}", once = true })
        server:wait "local log = ... return #log == 2"
        front:cut()
        local problem = raises("transport", task.wait, task)
        assert.is_true(problem.sent)
      end)
      assert.equal("x", trusting:request({ url = front.url .. "/last" }).body)
      local spawns = 0
      for _, entry in ipairs(server:log()) do spawns = spawns + (entry.path == "/spawn" and 1 or 0) end
      assert.equal(1, spawns)
      front:stop()
    end)
  end)

  describe("gzip", function()
    local function packed(body, more)
      return ("return function(request) return { body = %q, headers = { ['Content-Encoding'] = 'gzip' }, %s } end")
        :format(body, more or "")
    end

    it("is asked for, and nothing else", function()
      server:handle [[return function(request) return { body = request.headers["accept-encoding"] or "-" } end]]
      assert.equal("gzip", get("/", { compressed = true }).body)
      assert.equal("-", get("/").body)
      assert.equal("identity", get("/", { compressed = true, headers = { ["Accept-Encoding"] = "identity" } }).body)
    end)

    it("is unpacked wherever a body may go, errors too", function()
      local text = ("0123456789"):rep(20000)
      local body = gzip.whole(text:sub(1, 60000), text:sub(60001, 120000), text:sub(120001, 180000), text:sub(180001))
      for _, how in ipairs { "", "chunked = true", "length = false", "trickle = 1000" } do
        server:handle(packed(body, how))
        assert.equal(text, get("/", { compressed = true }).body)
        local stream <close> = open("/", { compressed = true })
        local parts = {}
        for chunk in function() return stream:read() end do parts[#parts + 1] = chunk end
        assert.equal(text, table.concat(parts))
        local sink <close> = core.sink(scratch.dir() .. "/file")
        get("/", { compressed = true, sink = sink })
        assert.equal(core.sha256(text), sink:sha256())
      end
      server:handle(packed(gzip.whole("hello ", "world"), "chunked = true, trickle = 1"))
      assert.equal("hello world", get("/", { compressed = true }).body)
      server:handle(packed(gzip.whole '{"error":"no"}', "status = 422"))
      assert.equal('{"error":"no"}', get("/", { compressed = true }).body)
      local sink <close> = core.sink(scratch.dir() .. "/file")
      assert.equal('{"error":"no"}', get("/", { compressed = true, sink = sink }).body)
      assert.equal(0, sink.size)
    end)

    it("may be several members, and may be x-gzip in other letters", function()
      server:handle(("return function() return { body = %q, headers = { ['Content-Encoding'] = 'X-Gzip' } } end")
        :format(gzip.whole "one " .. gzip.whole() .. gzip.whole "two"))
      assert.equal("one two", get("/", { compressed = true }).body)
    end)

    it("hands on each flushed piece at once", function()
      local pieces = { gzip.HEAD .. gzip.piece "data: 1\n\n", gzip.piece "data: 2\n\n", gzip.piece "data: 3\n\n",
        gzip.tail "data: 1\n\ndata: 2\n\ndata: 3\n\n" }
      server:handle(([[return function()
        return { pieces = { %q, %q, %q, %q }, chunked = true, gated = true,
          headers = { ["Content-Encoding"] = "gzip", ["Content-Type"] = "text/event-stream" } }
      end]]):format(table.unpack(pieces)))
      local stream <close> = open("/", { compressed = true })
      assert.equal("data: 1\n\n", take(stream, 9))
      server:wait "local log = ... return log[1].waits"
      raises("timeout", core.deadline, 0.02, stream.read, stream)
      server:go()
      assert.equal("data: 2\n\n", take(stream, 9))
      server:wait "local log = ... return log[1].waits"
      server:go()
      assert.equal("data: 3\n\n", take(stream, 9))
      server:wait "local log = ... return log[1].waits"
      server:go()
      assert.is_nil(stream:read())
      assert.is_nil(stream:read())
    end)

    it("that breaks off is an error behind what did come, however the connection ends", function()
      local whole = gzip.whole("hello ", "world")
      local how = { "chunked = true", "", "length = false" }
      for at = 1, #whole - 1 do
        server:handle(packed(whole:sub(1, at), how[at % 3 + 1]))
        local problem = raises("transport", get, "/", { compressed = true })
        assert.truthy(problem.message:find "breaks off")
        local stream <close> = open("/", { compressed = true })
        local text = ""
        local good, why
        repeat
          local chunk
          good, chunk = pcall(stream.read, stream)
          if good then text = text .. assert(chunk, "no error at " .. at) else why = chunk end
        until not good
        assert.equal("transport", why.kind)
        assert.equal(("hello world"):sub(1, #text), text)
        if at >= #gzip.HEAD + 5 + 6 then assert.truthy(#text >= 6) end
      end
      -- the connection itself
      server:handle(packed(whole, ("chunked = true, cut_at = %d"):format(#whole - 3)))
      raises("transport", get, "/", { compressed = true })
      local stream <close> = open("/", { compressed = true })
      assert.equal("hello world", take(stream, 11))
      raises("transport", stream.read, stream)
      -- and a sink
      server:handle(packed(whole:sub(1, -2)))
      local sink <close> = core.sink(scratch.dir() .. "/file")
      raises("transport", get, "/", { compressed = true, sink = sink })
      assert.equal(11, sink.size)
    end)

    it("that is none raises protocol", function()
      local whole = gzip.whole "hello"
      for _, body in ipairs {
        "hello", whole .. "xyz", whole .. "\0\0", whole:sub(1, -9) .. "\0\0\0\0" .. whole:sub(-4),
        whole:sub(1, -5) .. "\1\0\0\0", whole:sub(1, 10) .. "\7" .. whole:sub(12),
      } do
        server:handle(packed(body))
        raises("protocol", get, "/", { compressed = true })
      end
      server:handle [[return function() return { body = "x", headers = { ["Content-Encoding"] = "br" } } end]]
      raises("protocol", get, "/", { compressed = true })
      assert.equal("x", get("/").body)
      server:handle [[return function() return { body = "x", headers = { ["Content-Encoding"] = "identity" } } end]]
      assert.equal("x", get("/", { compressed = true }).body)
    end)

    it("of no bytes is an empty body where that is what was said", function()
      for _, how in ipairs { "status = 204", "status = 304", "", "chunked = true", "status = 500" } do
        server:handle(packed("", how))
        assert.equal("", get("/", { compressed = true, stall_timeout = 5 }).body)
      end
      server:handle(packed(gzip.whole "x"))
      assert.equal("", get("/", { compressed = true, method = "HEAD" }).body)
      server:handle(packed("", "length = false"))
      raises("transport", get, "/", { compressed = true })
    end)

    it("that unfolds to much is unpacked no further than somebody takes", function()
      local size = 192 << 20
      local body = sh(("head -c %d /dev/zero | gzip -9"):format(size))
      server:handle(packed(body))
      local before = resident()
      local stream <close> = open("/", { compressed = true, stall_timeout = 0.2 })
      local total = #stream:read()
      -- nobody's silence: the server has said all
      core.sleep(0.5)
      assert.truthy(resident() - before < 24 << 20)
      for chunk in function() return stream:read() end do
        assert.truthy(#chunk <= 512 << 10)
        total = total + #chunk
      end
      assert.equal(size, total)
      assert.truthy(resident() - before < 24 << 20)
      raises("resource", get, "/", { compressed = true, max_bytes = 1 << 20 })
      local sink <close> = core.sink(scratch.dir() .. "/file", { max_bytes = 1 << 20 })
      raises("resource", get, "/", { compressed = true, sink = sink })
    end)

    it("is not asked for what is resumed", function()
      server:handle [[return function(request)
        return { status = 206, body = request.headers["accept-encoding"] or "-",
          headers = { ["Content-Range"] = "bytes 4-4/5" } }
      end]]
      local path = scratch.file "abcd"
      local sink <close> = core.sink(path, { resume = true })
      assert.equal(206, get("/", { compressed = true, sink = sink, resume = true }).status)
      sink:sha256()
      assert.equal("abcd-", sh("cat " .. quote(path)))
    end)

    it("ends in whatever state its stream is closed", function()
      server:handle(packed(sh "head -c 64000000 /dev/zero | gzip -9", "chunked = true"))
      local stream = open("/", { compressed = true })
      stream:read(1)
      stream:close()
      raises("closed", stream.read, stream)
      local other = core.http()
      local left = other:open { url = server.url, compressed = true }
      left:read(1)
      server:wait "local log = ... return log[2] and (log[2].done or log[2].sent > 0)"
      other:close()
      local good, problem = true, nil
      while good do good, problem = pcall(left.read, left) end
      assert.equal("closed", problem.kind)
      local collected = open("/", { compressed = true })
      collected:read(1)
      collected = nil -- luacheck: ignore
      collectgarbage()
      collectgarbage()
      local ended <close> = open("/", { compressed = true })
      assert.truthy(ended:read())
    end)
  end)

  describe("a redirect", function()
    it("to another host takes no header along that says who asks, nor back again", function()
      local handler = [[return function(request)
        local host = request.headers.host:match "^[^:]+"
        local other = host == "localhost" and "127.0.0.1" or "localhost"
        local there = "http://" .. request.headers.host:gsub("^[^:]+", other)
        if request.path == "/away" then return { status = 302, headers = { Location = there .. "/there" } } end
        if request.path == "/round" then return { status = 302, headers = { Location = there .. "/back" } } end
        if request.path == "/back" then return { status = 302, headers = { Location = there .. "/there" } } end
        if request.path == "/near" then return { status = 302, headers = { Location = "/there" } } end
        return { body = request.path }
      end]]
      local request = {
        headers = { Project = "hunter2", Cookie = "hunter2", ["X-Token"] = "hunter2", Accept = "text/x" },
        bearer = "hunter2",
      }
      for path, steps in pairs { ["/away"] = 2, ["/round"] = 3, ["/near"] = 2 } do
        server:handle(handler)
        assert.equal("/there", get(path, request).body)
        local log = server:log()
        assert.equal(steps, #log)
        for i, entry in ipairs(log) do
          local known = i == 1 or path == "/near"
          assert.equal("text/x", entry.headers.accept)
          assert.equal(known and "Bearer hunter2" or nil, entry.headers.authorization)
          for _, name in ipairs { "project", "cookie", "x-token" } do
            assert.equal(known and "hunter2" or nil, entry.headers[name])
          end
        end
      end
    end)
  end)

  describe("a proxy", function()
    local ECHO = [[return function(request)
      if request.method == "CONNECT" then
        if request.headers["proxy-authorization"] == "Basic am9lOmh1bnRlcjI=" then return { tunnel = true } end
        return { status = 407, body = "hunter2" }
      end
      return { body = request.path .. " " .. (request.headers["proxy-authorization"] or "-") }
    end]]

    it("that is given is asked for everything, also for what is on this machine", function()
      server:handle(ECHO)
      local by <close> = core.http { proxy = server.url:gsub("//", "//joe:hunter2@") }
      local basic = "Basic am9lOmh1bnRlcjI="
      for _, url in ipairs { "http://no-such-host.invalid/x", "http://localhost:1/x" } do
        assert.equal(url .. " " .. basic, by:request({ url = url }).body)
      end
      assert.is_nil(tostring(by):find "hunter2")
      local without <close> = core.http { proxy = "" }
      assert.equal("/x -", without:request({ url = server.url .. "/x" }).body)
    end)

    it("counts for more than the environment, and so does none", function()
      server:handle(ECHO)
      local path = scratch.file(([[
        package.path, package.cpath = %q, %q
        local core = require "bough.core"
        for _, name in ipairs { arg[1], "" } do
          local client = core.http { proxy = name }
          local good, answer = pcall(client.request, client, { url = "http://no-such-host.invalid/x" })
          print(good and answer.body or answer.kind)
        end
      ]]):format(package.path, package.cpath))
      assert.equal("http://no-such-host.invalid/x -\ntransport\n", sh(
        ("http_proxy=http://no-proxy.invalid no_proxy=.invalid %s %s %s"):format(arena.lua(), quote(path), server.url)))
    end)

    it("is left out for what the environment says, and for what redirects lead to on this machine", function()
      server:handle [[return function(request)
        if request.path == "http://no-such-host.invalid/go" then
          return { status = 302, headers = { Location = "http://" .. request.headers["x-to"] .. "/here" } }
        end
        return { body = request.path }
      end]]
      local path = scratch.file(([[
        package.path, package.cpath = %q, %q
        local core = require "bough.core"
        local client = core.http()
        for _, url in ipairs { "http://no-such-host.invalid/go", "http://left.out.invalid/" } do
          local good, answer = pcall(client.request, client, { url = url, headers = { ["X-To"] = %q } })
          print(good and answer.body or answer.kind)
        end
      ]]):format(package.path, package.cpath, "127.0.0.1:" .. server.port))
      assert.equal("/here\ntransport\n", sh(("http_proxy=%s no_proxy=out.invalid %s %s")
        :format(server.url, arena.lua(), quote(path))))
    end)

    it("is a tunnel for TLS, which sees no header of ours", function()
      local secure = registry.start { tls = true }
      server:handle(ECHO)
      local by <close> = core.http { proxy = server.url:gsub("//", "//joe:hunter2@"), ca_file = secure.ca_file }
      local request = { url = ("https://localhost:%d/v2/"):format(secure.port), bearer = "secret",
        headers = { Project = "p" } }
      assert.equal(200, by:request(request).status)
      local log = server:log()
      assert.equal(1, #log)
      assert.equal("CONNECT", log[1].method)
      assert.is_nil(log[1].headers.authorization)
      assert.is_nil(log[1].headers.project)
      -- certificates are those of the host, not of whoever is in between
      local careful <close> = core.http { proxy = server.url:gsub("//", "//joe:hunter2@") }
      raises("transport", careful.request, careful, request)
      local other <close> = core.http { proxy = server.url:gsub("//", "//joe:other@"), ca_file = secure.ca_file }
      local problem = keeps(raises("transport", other.request, other, request), "hunter2", "joe", "other", "secret")
      assert.truthy(problem.message:find "proxy")
      assert.truthy(problem.message:find "407")
      assert.is_false(problem.sent)
      secure:stop()
    end)

    it("is never shown, whatever is wrong with it", function()
      for _, wrong in ipairs {
        "ftp://joe:hunter2@host", "http://joe:hunter2@", "http://joe:hunter2@host:notaport", "hunter2 hunter2",
        "http://hunter2\n", "hunter2\0", 42,
      } do keeps(raises("invalid", core.http, { proxy = wrong }), "hunter2", "joe") end
      local gone = proxy.start()
      gone:stop()
      for _, at in ipairs { "http://no-proxy.invalid", gone.url, "socks5h://" .. gone.host } do
        local by <close> = core.http { proxy = (at:gsub("//", "//joe:hunter2@")) }
        for _, scheme in ipairs { "http", "https" } do
          keeps(raises("transport", by.request, by, { url = scheme .. "://example.invalid/secret?a=b" }),
            "hunter2", "joe", "secret", "a=b")
        end
      end
    end)
  end)

  describe("what is told", function()
    it("holds no header, no credentials, and of the URL the host alone", function()
      server:handle [[return function(request)
        local path = request.path:match "^/(%a+)"
        if path == "cut" then return { body = ("x"):rep(100), cut_at = 5 } end
        if path == "late" then return { delay = 3600 } end
        if path == "odd" then return { raw = "HTTP/1.1 2x0 hunter2\r\nhunter2\r\n\r\n" } end
        if path == "none" then return { raw = "hunter2 is not HTTP" } end
        if path == "long" then return { raw = "HTTP/1.1 200 OK\r\nContent-Length: -hunter2\r\n\r\n" } end
        if path == "away" then return { status = 302, headers = { Location = "ftp://hunter2@hunter2/hunter2" } } end
        if path == "user" then return { status = 302, headers = { Location = "http://hunter2:hunter2@x/hunter2" } } end
        if path == "bad" then return { status = 302, headers = { Location = "http://[hunter2]/hunter2" } } end
        if path == "round" then return { status = 302, headers = { Location = request.path } } end
        return { body = ("x"):rep(100) }
      end]]
      local more = { timeout = 0.2, max_bytes = 50, follow = 2, bearer = "hunter2",
        headers = { Project = "hunter2", ["X-Hunter2"] = "hunter2" } }
      for _, path in ipairs { "cut", "late", "odd", "none", "long", "away", "user", "bad", "round", "much" } do
        local good, problem = pcall(get, "/" .. path .. "/hunter2?hunter2=hunter2", more)
        assert.is_false(good)
        assert.truthy(core.is_error(problem))
        keeps(problem, "hunter2", "Hunter2", "/" .. path)
        assert.equal("http", problem.op)
      end
      local transfer <close> = client:start { url = server.url .. "/late/hunter2", bearer = "hunter2" }
      local stream <close> = open("/hunter2?hunter2", { username = "hunter2", password = "hunter2" })
      for _, shown in ipairs { tostring(transfer), tostring(stream), tostring(client) } do
        assert.is_nil(shown:find "hunter2")
      end
      assert.equal(("transfer with %s (under way)"):format(server.host), tostring(transfer))
      assert.equal(("http stream 200 from %s"):format(server.host), tostring(stream))
    end)

    it("is what is wrong with options", function()
      for _, wrong in ipairs {
        { verify = "no" }, { verify = 0 }, { max_connections = -1 }, { max_connections = "x" },
        { max_connections = 1.5 }, { ca_file = 1 }, { ca_file = "a\0b" }, { user_agent = "a\r\nb" }, { strange = true },
      } do raises("invalid", core.http, wrong) end
    end)
  end)

  describe("a body", function()
    it("that is sent slowly but goes on is not a silent one", function()
      server:handle [[return function(request) return { body = tostring(request.body_size) } end]]
      local slow = relay.start(server.host)
      slow:rate(16 << 20)
      local size = 24 << 20
      local answer = client:request { url = "http://" .. slow.host .. "/", method = "POST", body = ("x"):rep(size),
        stall_timeout = 0.5, timeout = 60 }
      assert.equal(tostring(size), answer.body)
      slow:stop()
    end)

    it("is sent where the server will not be asked whether it wants it", function()
      server:handle [[return function(request, state)
        state.refuses_expect = true
        return { body = tostring(request.body_size) }
      end]]
      get "/"
      local size = 3 << 20
      local path = scratch.file(("x"):rep(size))
      local request = { url = server.url .. "/put", method = "PUT", body = { path = path } }
      local answer = client:request(request)
      assert.equal(200, answer.status)
      assert.equal(tostring(size), answer.body)
      request.once = true
      assert.equal(200, client:request(request).status)
    end)

    it("tells how much of it has gone", function()
      server:handle [[return function() return { delay = 3600 } end]]
      local transfer <close> = client:start { url = server.url, method = "POST", body = ("x"):rep(100000) }
      server:wait "local log = ... return #log == 1"
      while transfer:progress() < 100000 do transfer:wait(0.01) end
      assert.same({ 100000, 100000 }, { transfer:progress() })
    end)
  end)

  describe("a stream that nobody takes from", function()
    it("is not silent for that, however long it takes", function()
      server:handle [[return function() return { body = ("0123456789abcdef"):rep(4096), endless = true } end]]
      local stream <close> = open("/", { stall_timeout = 0.2 })
      stream:read(1)
      for _ = 1, 3 do
        core.sleep(0.4)
        local total = 0
        while total < 4 << 20 do total = total + #stream:read() end
      end
    end)

    it("is, once all has been taken and nothing more comes", function()
      server:handle [[return function() return { body = ("x"):rep(2 << 20), stall_at = (2 << 20) - 5 } end]]
      local stream <close> = open("/", { stall_timeout = 0.2 })
      core.sleep(0.4)
      local total = 0
      while total < (2 << 20) - 5 do total = total + #stream:read() end
      raises("timeout", stream.read, stream)
    end)
  end)

  describe("many at a time", function()
    it("share few connections where HTTP/2 is spoken, and one that stands still holds up no other", function()
      local COUNT, LEFT = 300, 270 -- the others are ended early
      server:handle [[return function(request)
        if request.path == "/flood" then return { body = ("x"):rep(65536), endless = true } end
        if request.path == "/small" then return { body = "x" } end
        local pieces = { "data: 1\n\n", "data: 2\n\n", "data: 3\n\n", "data: 4\n\n" }
        return { pieces = pieces, chunked = true, gated = true }
      end]]
      local front = relay.tls(server.host)
      local trusting <close> = core.http { ca_file = front.ca_file }
      core.run(function()
        local before = resident()
        local streams, tasks = {}, {}
        local function all(last, fn)
          for i = 1, last do tasks[i] = core.spawn(fn, i) end
          for i = 1, last do tasks[i]:wait() end
        end
        all(COUNT, function(i)
          local path = i <= LEFT and "/events" or "/gone"
          streams[i] = trusting:open { url = front.url .. path, http2 = true, stall_timeout = 60 }
          assert.equal("data: 1\n\n", take(streams[i], 9))
        end)
        assert.truthy(resident() - before < COUNT * (128 << 10))
        local total = front:count()
        assert.truthy(total <= 12, total)
        -- one that is not read, on a connection with a hundred others
        local flood <close> = trusting:open { url = front.url .. "/flood", http2 = true, stall_timeout = 60 }
        flood:read(1)
        local last
        repeat
          local sent = last
          trusting:request { url = front.url .. "/small" }
          for _, entry in ipairs(server:log()) do
            if entry.path == "/flood" then last = entry.sent end
          end
        until last == sent
        -- what libcurl takes of it then has a bound
        assert.truthy(resident() - before < 96 << 20)
        for i = LEFT + 1, COUNT do streams[i]:close() end
        local count = [[local log, n = ..., 0
          for _, entry in ipairs(log) do n = n + (entry.%s and entry.path == "/%s" and 1 or 0) end
          return n == %d]]
        for n = 2, 4 do
          server:wait(count:format("waits", "events", LEFT))
          server:go()
          all(LEFT, function(i) assert.equal(("data: %d\n\n"):format(n), take(streams[i], 9)) end)
        end
        local got = 0
        while got < 48 << 20 do got = got + #flood:read() end
        all(LEFT, function(i) assert.is_nil(streams[i]:read()) end)
        server:wait(count:format("aborted", "gone", COUNT - LEFT))
        assert.truthy(front:count() <= 12)
      end)
      front:stop()
    end)

    it("open no more connections than they need where only HTTP/1.1 is spoken", function()
      server:handle [[return function() return { body = "x" } end]]
      local narrow <close> = core.http { max_connections = 50 }
      core.run(function()
        local tasks, done = {}, 0
        local order = {}
        for i = 1, 3000 do
          tasks[i] = core.spawn(function()
            assert.equal("x", narrow:request({ url = server.url .. "/" .. i }).body)
            done = done + 1
            order[done] = i
          end)
        end
        for i = 1, 3000 do tasks[i]:wait() end
        -- first come, first served, give or take what is under way
        for at, i in ipairs(order) do assert.truthy(at - i < 1000, i) end
      end)
      local connections, count = {}, 0
      local log = server:log()
      for at, entry in ipairs(log) do
        if not connections[entry.connection] then
          connections[entry.connection] = true
          count = count + 1
        end
        local i = math.tointeger(tonumber(entry.path:sub(2)))
        assert.truthy(math.abs(at - i) <= 200, at)
      end
      assert.equal(3000, #log)
      assert.equal(50, count)
    end)

    it("hold a thousand open streams with little memory, and are all ended at once", function()
      server:handle [[return function()
        return { pieces = { "data: 1\n\n", "data: 2\n\n" }, chunked = true, gated = true }
      end]]
      local all = "local log = ... for _, e in ipairs(log) do if not e.%s then return false end end return #log == 1000"
      local wide = core.http()
      local before = resident()
      core.run(function()
        local streams, tasks = {}, {}
        for i = 1, 1000 do
          tasks[i] = core.spawn(function()
            streams[i] = wide:open { url = server.url, compressed = true, connect_timeout = 60, stall_timeout = 60 }
            assert.equal("data: 1\n\n", take(streams[i], 9))
          end)
        end
        for i = 1, 1000 do tasks[i]:wait() end
        assert.equal("http client (1000 transfers)", tostring(wide))
        assert.truthy(resident() - before < 1000 * (64 << 10))
        server:wait(all:format "waits")
        wide:close()
        for i = 1, 1000 do raises("closed", streams[i].read, streams[i]) end
      end)
      server:wait(all:format "aborted")
    end)
  end)

  describe("a host that takes connections and says nothing", function()
    it("costs everybody one time limit, not one after the other", function()
      local silent = relay.start(server.host)
      silent:hold(true)
      for _, scheme in ipairs { "https", "http" } do
        local other <close> = core.http()
        core.run(function()
          local tasks = {}
          local before = core.now()
          for i = 1, 200 do
            tasks[i] = core.spawn(other.request, other, { url = scheme .. "://" .. silent.host, connect_timeout = 0.5,
              stall_timeout = 0.5 })
          end
          for i = 1, 200 do raises("timeout", tasks[i].wait, tasks[i]) end
          assert.truthy(core.now() - before < (scheme == "https" and 10 or 20))
        end)
      end
      silent:stop()
    end)

    it("is given up when the total time is over, also by who only waits for a connection", function()
      server:handle [[return function() return { delay = 3600 } end]]
      local narrow <close> = core.http { max_connections = 1 }
      local first <close> = narrow:start { url = server.url .. "/", stall_timeout = 3600 }
      local second <close> = narrow:start { url = server.url .. "/", timeout = 0.2 }
      local third <close> = narrow:start { url = server.url .. "/", connect_timeout = 0.2 }
      local problem = raises("timeout", second.wait, second)
      assert.is_false(problem.sent)
      assert.is_nil(third:wait(0.3))
      assert.is_nil(first:wait(0))
      -- and makes room when it goes
      server:wait "local log = ... return #log == 1"
      first:close()
      server:wait "local log = ... return #log == 2"
    end)
  end)

  describe("the end of a client", function()
    it("ends what waits, what connects, what is sent and what is read, each once", function()
      server:handle [[return function(request)
        if request.path == "/late" then return { delay = 3600 } end
        return { body = ("x"):rep(65536), endless = true }
      end]]
      local silent = relay.start(server.host)
      silent:hold(true)
      local path = scratch.file(("x"):rep(8 << 20))
      for _, how in ipairs { "close", "collect", "one by one" } do
        local other = core.http { max_connections = 6 }
        local sink = core.sink(scratch.dir() .. "/file")
        core.run(function()
          local all = {}
          local function start(request) all[#all + 1] = other:start(request) end
          local stream = other:open { url = server.url .. "/x", stall_timeout = 60 }
          stream:read(1)
          start { url = server.url .. "/x", sink = sink }
          start { url = server.url .. "/late" }
          start { url = "https://" .. silent.host .. "/" }
          start { url = "http://" .. silent.host .. "/", method = "PUT", body = { path = path } }
          start { url = "http://no-such-host.invalid/" }
          for _ = 1, 20 do start { url = server.url .. "/late" } end
          start { url = server.url .. "/late", method = "PUT", body = { path = path } }
          while all[1]:progress() == 0 do all[1]:wait(0.01) end
          if how == "close" then
            other:close()
            for i = 1, #all do
              local good, problem = pcall(all[i].wait, all[i])
              assert.is_false(good)
              assert.truthy(problem.kind == "closed" or problem.kind == "transport", problem.kind)
            end
          elseif how == "one by one" then
            for i = #all, 1, -1 do all[i]:close() end
            stream:close()
            assert.equal("http client (0 transfers)", tostring(other))
          end
          stream, all, other = nil, nil, nil -- luacheck: ignore
          collectgarbage()
          collectgarbage()
        end)
        sink:close()
      end
      silent:stop()
    end)
  end)

  it("finds a file or a directory of certificates named in the environment", function()
    local dir = scratch.dir()
    registry.certificate(dir)
    scratch.file("hello\n", dir .. "/hello")
    sh(("ln -s cert.pem %s/$(openssl x509 -hash -noout -in %s/cert.pem).0"):format(quote(dir), quote(dir)))
    local tls = daemon.start(("cd %s && exec openssl s_server -accept 127.0.0.1:0 -cert cert.pem -key key.pem -WWW")
      :format(quote(dir)), "ACCEPT")
    local path = scratch.file(([[
      package.path, package.cpath = %q, %q
      local core = require "bough.core"
      local client = core.http()
      local good, answer = pcall(client.request, client, { url = "https://127.0.0.1:%d/hello" })
      io.write(good and answer.body or answer.kind)
    ]]):format(package.path, package.cpath, tls:port()))
    local unset = "-u SSL_CERT_DIR -u SSL_CERT_FILE -u CURL_CA_BUNDLE"
    for _, variable in ipairs { "SSL_CERT_DIR=" .. dir, "SSL_CERT_FILE=" .. dir .. "/cert.pem",
      "CURL_CA_BUNDLE=" .. dir .. "/cert.pem" } do
      assert.equal("hello\n", sh(("env %s %s %s %s"):format(unset, quote(variable), arena.lua(), quote(path))))
    end
    assert.equal("transport", sh(("env %s %s %s"):format(unset, arena.lua(), quote(path))))
    tls:stop()
  end)
end)
