--- The HTTP client of the core, against a server on loopback that misbehaves as told.

local core = require "bough.core"
local lfs = require "lfs"
local daemon = require "spec.support.daemon"
local proxy = require "spec.support.proxy"
local raises = require "spec.support.raises"
local registry = require "spec.support.registry"
local scratch = require "spec.support.scratch"

local quote, sh = scratch.quote, scratch.sh

local function content(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

local function resident()
  return math.tointeger(tonumber(content("/proc/self/status"):match "VmRSS:%s*(%d+)")) << 10
end

-- Every step of the loop counts, so whoever blocks it is seen.
local function turns_during(fn)
  local turns, done = 0, false
  core.run(function()
    local counter = core.spawn(function()
      while not done do
        turns = turns + 1
        core.sleep(0.001)
      end
    end)
    fn()
    done = true
    counter:wait()
  end)
  return turns
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

  describe("request", function()
    it("returns status, headers, body and where it ended up", function()
      server:handle [[return function(request)
        if request.path == "/from" then return { status = 302, headers = { Location = "/to?x=1" } } end
        return { status = 404, body = "nothing", headers = { ["X-One"] = { "a", "b" }, Empty = "" } }
      end]]
      local answer = get "/from"
      assert.equal(404, answer.status)
      assert.equal("nothing", answer.body)
      assert.equal("a, b", answer.headers["x-one"])
      assert.equal("", answer.headers.empty)
      assert.equal("7", answer.headers["content-length"])
      assert.equal(server.url .. "/to?x=1", answer.url)
      assert.equal(302, get("/from", { follow = 0 }).status)
    end)

    it("sends methods, headers and bodies as they are given", function()
      server:handle [[return function(request) return { body = request.body } end]]
      local headers = { Accept = "x/y", Blank = "" }
      assert.equal("{}", get("/", { method = "POST", body = "{}", headers = headers }).body)
      assert.equal("a\0b", get("/", { method = "PUT", body = "a\0b" }).body)
      assert.equal("", get("/", { method = "POST" }).body)
      assert.equal("", get("/", { method = "DELETE" }).body)
      assert.equal("", get("/", { method = "HEAD" }).body)
      local log = server:log()
      assert.equal("POST", log[1].method)
      assert.equal("x/y", log[1].headers.accept)
      assert.equal("", log[1].headers.blank)
      assert.is_nil(log[1].headers["content-type"])
      assert.equal("0", log[3].headers["content-length"])
      assert.equal("DELETE", log[4].method)
      assert.equal("HEAD", log[5].method)
    end)

    it("uses one connection again and again", function()
      server:handle [[return function() return { body = "x" } end]]
      for _ = 1, 5 do get "/" end
      local log = server:log()
      assert.equal(log[1].connection, log[5].connection)
    end)

    it("sends a file, or a part of one, from where it is", function()
      local text = {}
      for i = 1, 60000 do text[i] = ("%d\n"):format(i) end
      text = table.concat(text)
      local path = scratch.file(text)
      server:handle [[return function(request) return { body = request.body } end]]
      assert.equal(text, get("/", { method = "PUT", body = { path = path } }).body)
      assert.equal(text:sub(1001, 3000),
        get("/", { method = "POST", body = { path = path, offset = 1000, size = 2000 } }).body)
      assert.equal("", get("/", { method = "PUT", body = { path = path, offset = #text } }).body)
      raises("invalid", get, "/", { method = "PUT", body = { path = path, size = #text + 1 } })
      raises("not_found", get, "/", { method = "PUT", body = { path = path .. ".gone" } })
      raises("invalid", get, "/", { method = "PUT", body = { path = "/dev/null" } })
    end)

    it("decodes what is compressed when asked to, and not otherwise", function()
      local packed = sh("printf hello | gzip -c | od -An -v -tx1"):gsub("%s+", ""):gsub("%x%x", "\\x%0")
      server:handle(([[return function()
        return { body = "%s", headers = { ["Content-Encoding"] = "gzip" } }
      end]]):format(packed))
      assert.equal("hello", get("/", { compressed = true }).body)
      assert.equal("\x1f\x8b", get("/").body:sub(1, 2))
    end)

    it("tells what is wrong with a request without repeating secrets", function()
      for _, wrong in ipairs {
        { url = "ftp://x/" }, { url = "no url" }, { url = "http://" }, { url = "http://user:hunter2@x/" },
        { url = server.url, headers = { ["A b"] = "x" } },
        { url = server.url, headers = { A = "hunter2\r\nB: x" } },
        { url = server.url, method = "GET x" }, { url = server.url, bearer = "hunter2\n" },
        { url = server.url, username = "u" }, { url = server.url, body = 1 },
        { url = server.url, strange = 1 }, { url = server.url, timeout = -1 },
        { url = server.url, max_bytes = "x" }, {},
      } do
        local problem = raises("invalid", client.request, client, wrong)
        assert.is_nil(problem.message:find("hunter2", 1, true))
      end
    end)
  end)

  describe("authorization", function()
    it("is sent to the host it is for, and to no other", function()
      local other <close> = setmetatable({}, { __close = function(self) self.it:stop() end })
      other.it = proxy.start()
      other.it:handle [[return function() return { body = "other" } end]]
      server:handle(([[return function(request)
        if request.path == "/away" then return { status = 307, headers = { Location = "%s/there" } } end
        if request.path == "/near" then return { status = 307, headers = { Location = "/here" } } end
        return { body = "here" }
      end]]):format(other.it.url))
      for _, how in ipairs { { bearer = "tok" }, { username = "u", password = "p" } } do
        assert.equal("other", get("/away", how).body)
        assert.equal("here", get("/near", how).body)
      end
      for _, entry in ipairs(other.it:log()) do assert.is_nil(entry.headers.authorization) end
      for i, entry in ipairs(server:log()) do
        assert.equal(i <= 3 and "Bearer tok" or "Basic dTpw", entry.headers.authorization)
      end
    end)
  end)

  describe("limits", function()
    it("raises resource for a body that is larger than wanted, and stops reading it", function()
      server:handle [[return function() return { body = ("x"):rep(65536), endless = true } end]]
      local problem = raises("resource", get, "/", { max_bytes = 100000 })
      assert.truthy(problem.message:find "100000 bytes")
      server:wait "local log = ... return log[1].aborted"
    end)

    it("raises protocol for headers without end", function()
      server:handle [[return function()
        return { raw = "HTTP/1.1 200 OK\r\n" .. ("X: " .. ("y"):rep(90) .. "\r\n"):rep(100000) }
      end]]
      raises("protocol", get, "/")
      server:handle [[return function()
        return { raw = "HTTP/1.1 200 OK\r\n" .. ("X: y\r\n"):rep(1500) .. "\r\n" }
      end]]
      raises("protocol", get, "/")
    end)

    it("raises timeout for a silent peer, for one that is too slow, and for one that drips", function()
      server:handle [[return function(request)
        if request.path == "/slow" then return { delay = 3600, body = "x" } end
        if request.path == "/drip" then return { body = "x", endless = true, trickle = 1 } end
        return { body = ("x"):rep(100), stall_at = 50 }
      end]]
      local problem = raises("timeout", get, "/stall", { stall_timeout = 0.1 })
      assert.truthy(problem.message:find "silent for 0.1 s")
      raises("timeout", get, "/slow", { stall_timeout = 0.1 })
      raises("timeout", get, "/slow", { timeout = 0.1 })
      raises("timeout", get, "/drip", { timeout = 0.1, stall_timeout = 60, max_bytes = 1 << 40 })
      raises("timeout", get, "/stall", { timeout = 0.1 })
    end)

    it("raises protocol for a circle of redirects", function()
      server:handle [[return function() return { status = 302, headers = { Location = "/again" } } end]]
      raises("protocol", get, "/")
      assert.equal(11, #server:log())
    end)
  end)

  describe("a bad connection", function()
    it("raises transport when nobody is there, naming host and port", function()
      local gone = proxy.start()
      gone:stop()
      local problem = raises("transport", client.request, client, { url = gone.url .. "/secret?x=hunter2" })
      assert.truthy(problem.message:find(gone.host, 1, true))
      assert.is_nil(problem.message:find "hunter2")
      problem = raises("transport", client.request, client, { url = "http://no-such-host.invalid/" })
      assert.truthy(problem.message:find "no%-such%-host%.invalid")
    end)

    it("raises transport for an answer that is cut short, wherever", function()
      server:handle [[return function(request)
        local path = request.path
        if path == "/body" then return { body = ("x"):rep(1000), cut_at = 10 } end
        if path == "/reset" then return { body = ("x"):rep(1000), cut_at = 10, reset = true } end
        if path == "/chunk" then return { body = ("x"):rep(1000), chunked = true, cut_at = 10 } end
        if path == "/head" then return { raw = "HTTP/1.1 200 OK\r\nContent-Le" } end
        return { raw = "" }
      end]]
      for _, path in ipairs { "/body", "/reset", "/chunk", "/head", "/nothing" } do
        local problem = raises("transport", get, path)
        assert.truthy(problem.message:find(server.host, 1, true))
      end
    end)

    it("raises protocol for what is no HTTP", function()
      server:handle [[return function() return { raw = "220 mail ready\r\n" } end]]
      raises("protocol", get, "/")
    end)
  end)

  describe("open", function()
    it("returns when the headers are there, and reads what comes as it comes", function()
      server:handle [[return function(request, state)
        return { chunked = true, pieces = { "data: 1\n\n", "data: 2\n\n" }, stall_at = 18,
          headers = { ["Content-Type"] = "text/event-stream" } }
      end]]
      local stream <close> = client:open { url = server.url .. "/events", stall_timeout = math.huge }
      assert.equal(200, stream.status)
      assert.equal("text/event-stream", stream.headers["content-type"])
      local text = ""
      while #text < 18 do text = text .. assert(stream:read(5)) end
      assert.equal("data: 1\n\ndata: 2\n\n", text)
      raises("timeout", core.deadline, 0.05, stream.read, stream)
    end)

    it("gives nil at the end, and raises after the last byte of what was cut", function()
      server:handle [[return function(request)
        return { body = "0123456789", cut_at = request.path == "/cut" and 4 or nil }
      end]]
      local stream <close> = client:open { url = server.url .. "/" }
      assert.equal("0123", stream:read(4))
      assert.equal("456789", stream:read())
      assert.is_nil(stream:read())
      assert.is_nil(stream:read())
      local cut <close> = client:open { url = server.url .. "/cut" }
      assert.equal("0123", cut:read())
      raises("transport", cut.read, cut)
    end)

    it("does not read on while nobody takes, and loses nothing", function()
      server:handle [[return function() return { body = ("0123456789abcdef"):rep(4096), endless = true } end]]
      local stream <close> = client:open { url = server.url .. "/" }
      stream:read(1)
      -- as long as others have turns the server could go on, if it were let
      local before, sent = resident(), nil
      repeat
        local last = sent
        client:request { url = server.url .. "/_wait", method = "POST", body = "return true" }
        sent = server:log()[1].sent
      until sent == last
      assert.truthy(resident() - before < 8 << 20)
      local total = 1
      local expected = 1
      while total < 32 << 20 do
        local chunk = stream:read()
        local first = ("0123456789abcdef"):sub(expected % 16 + 1, expected % 16 + 1)
        assert.equal(first, chunk:sub(1, 1))
        expected, total = expected + #chunk, total + #chunk
      end
      assert.truthy(resident() - before < 16 << 20)
    end)

    it("ends the transfer when it is closed", function()
      server:handle [[return function() return { body = "x", endless = true } end]]
      local stream = client:open { url = server.url .. "/" }
      stream:read()
      stream:close()
      raises("closed", stream.read, stream)
      server:wait "local log = ... return log[1].aborted"
    end)
  end)

  describe("cancelling", function()
    it("ends the transfer of a task", function()
      server:handle [[return function() return { body = ("x"):rep(10), stall_at = 5 } end]]
      core.run(function()
        local task = core.spawn(get, "/")
        server:wait "local log = ... return log[1].stalled"
        task:cancel()
        raises("cancelled", task.wait, task)
      end)
      server:wait "local log = ... return log[1].aborted"
    end)

    it("ends the transfer of a caller whose deadline passes", function()
      server:handle [[return function() return { delay = 3600 } end]]
      local problem = raises("timeout", core.deadline, 0.05, get, "/")
      assert.equal("deadline", problem.op)
      server:wait "local log = ... return log[1].aborted"
    end)

    it("of all transfers happens when the client is closed", function()
      server:handle [[return function() return { delay = 3600 } end]]
      local other = core.http()
      core.run(function()
        local tasks = {}
        for i = 1, 5 do tasks[i] = core.spawn(other.request, other, { url = server.url .. "/" }) end
        server:wait "local log = ... return #log == 5"
        other:close()
        for _, task in ipairs(tasks) do raises("closed", task.wait, task) end
      end)
      raises("closed", other.request, other, { url = server.url })
      assert.equal("http client (closed)", tostring(other))
    end)
  end)

  describe("start", function()
    it("tells how far it is, and can be waited for again", function()
      server:handle [[return function() return { body = ("x"):rep(1000), stall_at = 500 } end]]
      local transfer <close> = client:start { url = server.url .. "/" }
      server:wait "local log = ... return log[1].stalled"
      assert.is_nil(transfer:wait(0))
      while transfer:progress() < 500 do transfer:wait(0.01) end
      local done, total = transfer:progress()
      assert.same({ 500, 1000 }, { done, total })
      transfer:close()
      raises("closed", transfer.wait, transfer)

      server:handle [[return function() return { body = "x" } end]]
      local short <close> = client:start { url = server.url .. "/" }
      assert.equal("x", short:wait().body)
      assert.equal("x", short:wait(0).body)
    end)

    it("counts no time in which it waits for a connection", function()
      server:handle [[return function(_, state)
        state.count = (state.count or 0) + 1
        return { delay = state.count == 1 and 0.3 or nil, body = "x" }
      end]]
      local narrow <close> = core.http { max_connections = 1 }
      local first <close> = narrow:start { url = server.url .. "/" }
      local second <close> = narrow:start {
        url = server.url .. "/", connect_timeout = 0.1, stall_timeout = 0.1,
      }
      assert.equal("x", second:wait().body)
      assert.equal("x", first:wait().body)
    end)

    it("runs as many at a time as max_connections says", function()
      server:handle [[return function() return { delay = 0.01, body = "x" } end]]
      local narrow <close> = core.http { max_connections = 2 }
      local transfers = {}
      for i = 1, 20 do transfers[i] = narrow:start { url = server.url .. "/", stall_timeout = 0.1 } end
      for _, transfer in ipairs(transfers) do assert.equal("x", transfer:wait().body) end
      local seen, count = {}, 0
      for _, entry in ipairs(server:log()) do
        if not seen[entry.connection] then count = count + 1 end
        seen[entry.connection] = true
      end
      assert.equal(2, count)
    end)
  end)

  describe("in a generator inside a task", function()
    it("works where no other task runs", function()
      server:handle [[return function() return { body = "x" } end]]
      assert.equal("x", core.run(function()
        return coroutine.wrap(function() return get("/").body end)()
      end))
    end)
  end)

  it("asks through the proxy that the environment names, but not for what is on this machine", function()
    server:handle [[return function(request) return { body = request.path } end]]
    local path = scratch.file(([[
      package.path, package.cpath = %q, %q
      local core = require "bough.core"
      local client = core.http()
      for _, url in ipairs { "http://no-such-host.invalid/x", %q, %q } do
        local good, answer = pcall(client.request, client, { url = url })
        print(good and answer.body or answer.kind)
      end
    ]]):format(package.path, package.cpath, server.url .. "/y",
      ("http://localhost:%d/z"):format(server.port)))
    local lua = require "spec.support.arena".lua()
    assert.equal("http://no-such-host.invalid/x\n/y\n/z\n",
      sh(("http_proxy=%s %s %s"):format(server.url, lua, quote(path))))
    -- the credentials of a proxy are no part of any message
    local output = sh(("http_proxy=http://joe:hunter2@no-proxy.invalid %s %s"):format(lua, quote(path)))
    assert.equal("transport\n/y\n/z\n", output)
  end)

  it("leaves the loop to others", function()
    server:handle [[return function() return { body = ("x"):rep(1 << 20) } end]]
    local path = scratch.dir() .. "/file"
    local turns = turns_during(function()
      local sink <close> = core.sink(path)
      for _ = 1, 40 do get("/", { sink = sink }) end
    end)
    assert.truthy(turns > 20)
    assert.equal(40 << 20, lfs.attributes(path, "size"))
  end)

  it("makes no descriptor that the host's children get", function()
    server:handle [[return function() return { body = "x" } end]]
    get "/"
    local before = {}
    local open = core.http()
    open:request { url = server.url .. "/" }
    for name in lfs.dir "/proc/self/fd" do
      local flags = name:find "^%d+$" and io.open("/proc/self/fdinfo/" .. name)
      if flags then
        local mode = tonumber(flags:read("a"):match "flags:%s*(%d+)", 8)
        flags:close()
        local target = lfs.symlinkattributes("/proc/self/fd/" .. name, "target") or ""
        if target:find "^socket:" and mode & 0x80000 == 0 then before[#before + 1] = name .. " " .. target end
      end
    end
    open:close()
    assert.same({}, before)
  end)

  it("goes when the Lua state goes, whatever is under way", function()
    server:handle [[return function(request)
      if request.path == "/late" then return { delay = 3600 } end
      return { body = ("x"):rep(65536), endless = true }
    end]]
    local path = scratch.file(([[
      package.path, package.cpath = %q, %q
      local core = require "bough.core"
      local client = core.http()
      local sink = core.sink(%q)
      STREAM = client:open { url = %q }
      STREAM:read(10)
      A = client:start { url = %q, sink = sink }
      B = client:start { url = %q }
      C = client:start { url = "http://no-such-host.invalid/" }
      D = client:start { url = %q, method = "PUT", body = { path = %q } }
      core.spawn(client.request, client, { url = %q })
      while A:progress() == 0 do A:wait(0.01) end
      if arg[1] == "closed" then client:close() end
      if arg[1] == "collected" then
        client, sink, STREAM, A, B, C, D = nil
        collectgarbage()
        collectgarbage()
      end
      core.step(0)
      io.write "end"
    ]]):format(package.path, package.cpath, scratch.dir() .. "/file", server.url .. "/x", server.url .. "/y",
      server.url .. "/late", server.url .. "/late", scratch.file(("x"):rep(1 << 20)), server.url .. "/late"))
    for _, how in ipairs { "closed", "collected", "open" } do
      local lua = require "spec.support.arena".lua()
      assert.equal("end", sh(("%s %s %s"):format(lua, quote(path), how)))
    end
  end)

  describe("over TLS", function()
    local secure, ca_file

    lazy_setup(function()
      secure = registry.start { tls = true }
      ca_file = secure.ca_file
    end)

    lazy_teardown(function() secure:stop() end)

    it("trusts no certificate but those it should", function()
      local url = "https://" .. secure.host .. "/v2/"
      local problem = raises("transport", client.request, client, { url = url })
      assert.truthy(problem.message:find "certificate")
      local trusting <close> = core.http { ca_file = ca_file }
      assert.equal(200, trusting:request({ url = url }).status)
      assert.equal(200, trusting:request({ url = url, http2 = false }).status)
      -- localhost is in the certificate, other names of the machine are not
      raises("transport", trusting.request, trusting,
        { url = ("https://127.0.0.2:%d/v2/"):format(secure.port) })
      local careless <close> = core.http { verify = false }
      assert.equal(200, careless:request({ url = url }).status)
      local mistaken <close> = core.http { ca_file = "/nonexistent" }
      raises("invalid", mistaken.request, mistaken, { url = url })
      raises("transport", client.request, client, { url = "https://" .. server.host .. "/" })
    end)

    it("is not led away from TLS", function()
      local dir = scratch.dir()
      registry.certificate(dir)
      server:handle [[return function() return { body = "plain" } end]]
      scratch.file(("HTTP/1.1 302 Found\r\nLocation: %s/\r\nContent-Length: 0\r\n\r\n"):format(server.url),
        dir .. "/go")
      local tls = daemon.start(("cd %s && exec openssl s_server -accept 127.0.0.1:0 "
        .. "-cert cert.pem -key key.pem -HTTP"):format(quote(dir)), "ACCEPT")
      local trusting <close> = core.http { ca_file = dir .. "/cert.pem" }
      local problem = raises("transport", trusting.request, trusting,
        { url = ("https://127.0.0.1:%d/go"):format(tls:port()), bearer = "secret" })
      assert.truthy(problem.message:find "away from https")
      assert.same({}, server:log())
      tls:stop()
    end)
  end)
end)

describe("core.sink", function()
  local server, client

  lazy_setup(function()
    server = proxy.start()
    client = core.http()
  end)

  lazy_teardown(function()
    client:close()
    server:stop()
  end)

  local function fetch(sink, more)
    local request = { url = server.url .. "/", sink = sink }
    for name, value in pairs(more or {}) do request[name] = value end
    return client:request(request)
  end

  it("takes bodies of success and knows their digest", function()
    server:handle [[return function(request) return { body = ("0123456789"):rep(300000) } end]]
    local path = scratch.dir() .. "/file"
    local sink <close> = core.sink(path)
    local answer = fetch(sink)
    assert.is_nil(answer.body)
    assert.equal(3000000, sink.size)
    assert.equal(core.sha256(("0123456789"):rep(300000)), sink:sha256())
    assert.equal(("0123456789"):rep(300000), content(path))
    fetch(sink)
    assert.equal(core.sha256(("0123456789"):rep(600000)), sink:sha256())
    sink:reset()
    assert.equal(0, sink.size)
    assert.equal(core.sha256 "", sink:sha256())
    assert.equal("", content(path))
  end)

  it("takes what is written to it", function()
    local path = scratch.dir() .. "/file"
    local sink <close> = core.sink(path, { max_bytes = 5000000 })
    local text = ("0123456789"):rep(300000)
    assert.equal(sink, sink:write "":write(text))
    assert.equal(#text, sink.size)
    sink:write "end"
    assert.equal(core.sha256(text .. "end"), sink:sha256())
    assert.equal(text .. "end", content(path))
    raises("invalid", sink.write, sink, 5)
    raises("resource", sink.write, sink, text)
    raises("resource", sink.write, sink, "more")
    sink:close()
    raises("closed", sink.write, sink, "more")
  end)

  it("leaves the bodies of other answers to the caller, and not all of a long one", function()
    server:handle [[return function(request) return { status = 404, body = "gone" } end]]
    local sink <close> = core.sink(scratch.dir() .. "/file")
    assert.equal("gone", fetch(sink).body)
    assert.equal(0, sink.size)
    server:handle [[return function()
      return { status = 500, body = ("x"):rep(1000), endless = true }
    end]]
    local answer = fetch(sink)
    assert.equal(500, answer.status)
    assert.equal(64 << 10, #answer.body)
    assert.equal(0, sink.size)
  end)

  it("keeps what came before a cut, and goes on from there", function()
    server:handle [[return function(request, state)
      local body = ("abcdefghij"):rep(50000)
      local from = math.tointeger(tonumber((request.headers.range or ""):match "^bytes=(%d+)%-$"))
      if not from then return { body = body, cut_at = 123456 } end
      return { status = 206, body = body:sub(from + 1),
        headers = { ["Content-Range"] = ("bytes %d-%d/%d"):format(from, #body - 1, #body) } }
    end]]
    local path = scratch.dir() .. "/file"
    do
      local sink <close> = core.sink(path)
      raises("transport", fetch, sink)
      assert.equal(123456, sink.size)
    end
    assert.equal(123456, lfs.attributes(path, "size"))
    local sink <close> = core.sink(path, { resume = true })
    assert.equal(123456, sink.size)
    assert.equal(206, fetch(sink, { resume = true }).status)
    assert.equal(core.sha256(("abcdefghij"):rep(50000)), sink:sha256())
    assert.equal("bytes=123456-", server:log()[2].headers.range)
  end)

  it("starts over where ranges are not known, and refuses another range", function()
    local path = scratch.file(("z"):rep(1000))
    server:handle [[return function(request) return { body = ("abcdefghij"):rep(50000) } end]]
    do
      local sink <close> = core.sink(path, { resume = true })
      assert.equal(200, fetch(sink, { resume = true }).status)
      assert.equal(core.sha256(("abcdefghij"):rep(50000)), sink:sha256())
      assert.equal(500000, sink.size)
    end
    server:handle [[return function(request)
      return { status = 206, body = "x", headers = { ["Content-Range"] = "bytes 0-0/500001" } }
    end]]
    local sink <close> = core.sink(path, { resume = true })
    raises("protocol", fetch, sink, { resume = true })
    assert.equal(500000, sink.size)
  end)

  it("holds no more than max_bytes", function()
    server:handle [[return function(request) return { body = ("x"):rep(65536), endless = true } end]]
    local path = scratch.dir() .. "/file"
    local sink <close> = core.sink(path, { max_bytes = 100000 })
    raises("resource", fetch, sink)
    assert.truthy(sink.size <= 100000)
    raises("resource", sink.sha256, sink)
    sink:reset()
    assert.equal(0, sink.size)
    server:wait "local log = ... return log[1].aborted"
  end)

  it("raises what is wrong with the file", function()
    raises("not_found", core.sink, scratch.dir() .. "/no/file")
    raises("invalid", core.sink, scratch.dir())
    raises("invalid", core.sink, "/dev/null")
    raises("invalid", core.sink, "a\0b")
    raises("invalid", core.sink, nil)
    local fifo = scratch.dir() .. "/fifo"
    sh("mkfifo " .. quote(fifo))
    raises("invalid", core.sink, fifo)
    local sink = core.sink(scratch.dir() .. "/file")
    assert.truthy(tostring(sink):find "0 bytes")
    sink:close()
    sink:close()
    raises("closed", sink.sha256, sink)
    raises("closed", fetch, sink)
    assert.equal("sink (closed)", tostring(sink))
  end)

  it("says when the disk is full", function()
    server:handle [[return function() return { body = ("x"):rep(1 << 20) } end]]
    local dir = scratch.dir()
    -- a limit on the size of files does as well, and needs no mount
    local path = scratch.file(([[
      package.path, package.cpath = %q, %q
      local core = require "bough.core"
      local client, sink = core.http(), core.sink(%q)
      local good, problem = pcall(client.request, client, { url = %q, sink = sink })
      io.write(tostring(good), " ", problem.kind, " ", problem.code or "")
    ]]):format(package.path, package.cpath, dir .. "/file", server.url))
    local lua = require "spec.support.arena".lua()
    assert.equal("false io EFBIG",
      sh(("trap '' XFSZ; ulimit -f 100; %s %s"):format(lua, quote(path))))
  end)

  it("is used by one transfer at a time", function()
    server:handle [[return function() return { delay = 3600 } end]]
    local sink <close> = core.sink(scratch.dir() .. "/file")
    local transfer <close> = client:start { url = server.url .. "/", sink = sink }
    raises("busy", fetch, sink)
    assert.is_nil(transfer:wait(0))
  end)
end)
