--- The HTTP server that `bough serve` is built on: bough.httpd and lua/bough/serve/http.lua.

local core = require "bough.core"
local fixture = require "spec.engine.fixture"
local http = require "bough.serve.http"
local httpd = require "bough.httpd"
local http_client = require "spec.support.http_client"
local json = require "bough.json"
local raises = require "spec.support.raises"
local registry = require "spec.support.registry"
local scratch = require "spec.support.scratch"

local HOST = "Host: x\r\n"
local GET = "GET /json HTTP/1.1\r\n" .. HOST .. "\r\n"

-- What most tests ask for.
local SERVER = [==[return function(core, http)
  local kept = {}
  local routes = {
    json = function(r) r:reply(200, { hello = "world" }) end,
    about = function(r)
      r:reply(200, { method = r.method, path = r.path, segments = r.segments, query = r.query, params = r.params,
        headers = r.headers, peer = r.peer, id = r.id, version = r.version, length = r.length })
    end,
    echo = function(r) r:send(200, "application/octet-stream", r:body(1 << 24)) end,
    count = function(r)
      local bytes, pieces, most = 0, 0, 0
      for piece in r:chunks() do
        bytes, pieces, most = bytes + #piece, pieces + 1, math.max(most, #piece)
      end
      r:reply(200, { bytes = bytes, pieces = pieces, most = most })
    end,
    limited = function(r) r:reply(200, { size = #r:body(1000) }) end,
    json_body = function(r) r:reply(200, r:json()) end,
    empty = function(r) r:reply(204) end,
    unasked = function(r) r:reply(200, { unread = true }) end,
    text = function(r) r:send(200, "text/plain", ("text "):rep(tonumber(r.params.n[1]))) end,
    events = function(r)
      local out <close> = r:stream(200, "text/event-stream")
      for i = 1, tonumber(r.params.n[1]) do
        if not out:write(("data: event %d, and much the same as the one before\n\n"):format(i)) then return end
        if r.params.hold then kept[#kept + 1] = core.condition(); kept[#kept]:wait() end
      end
    end,
    next = function(r)
      for _, cond in ipairs(kept) do cond:fire() end
      kept = {}
      r:reply(204)
    end,
    bulk = function(r)
      local out <close> = r:stream(200, "application/octet-stream")
      local piece = ("0123456789abcdef"):rep(4096)
      for _ = 1, tonumber(r.params.n[1]) do if not out:write(piece) then kept.written = false return end end
      kept.written = true
    end,
    sized = function(r)
      local out <close> = r:stream(200, "text/plain", nil, tonumber(r.params.size[1]))
      local piece = ("x"):rep(1 << 16)
      for _ = 1, tonumber(r.params.n[1]) do if not out:write(piece) then return end end
    end,
    idle = function(r)
      local out <close> = r:stream(200, "text/event-stream")
      while out:write ": keepalive\n\n" do r:on_gone():wait(15) end
    end,
    long = function(r)
      kept.long = "waiting"
      r:on_gone():wait()
      kept.long = tostring(r.gone)
      r:reply(200)
    end,
    cancelled = function(r)
      local watch <close> = setmetatable({}, { __close = function(_, e) kept.long = e and e.kind or "left" end })
      kept.long = "waiting"
      r:cancel_when_gone()
      core.sleep(1000)
    end,
    state = function(r) r:reply(200, { long = kept.long, written = kept.written }) end,
    torn = function(r)
      local out <close> = r:stream(200, "text/plain")
      out:write "some of it"
      out:flush()
      error "torn"
    end,
    problem = function() error(http.problem(418, "no coffee", { kind = "unsupported", retry_after = 1.5,
      headers = { ["X-Pot"] = "tea" } }), 0) end,
    kind = function(r) error(core.error(r.params.k[1], "as told"), 0) end,
    boom = function() error "the secret of the house" end,
    table = function() error({}) end,
    twice = function(r) r:reply(200, { first = true }) r:reply(200, { second = true }) end,
    silent = function() end,
    header = function(r) r:reply(200, nil, { [r.params.name and r.params.name[1] or "X-Said"] = r.params.v[1] }) end,
    headers = function(r) r:reply(200, nil, { ["Set-Cookie"] = { "a=1", "b=2" }, ["X-Number"] = 7 }) end,
    unsayable = function(r) r:reply(200, { f = print }) end,
  }
  return { %s }, function(r)
    local route = routes[r.segments[1]]
    if not route then error(http.problem(404, "no such route", { kind = "not_found" }), 0) end
    return route(r)
  end
end]==]

local function start(options, scheme, client)
  return http_client.start((SERVER:gsub("%%s", function() return options or "" end)), scheme, client)
end

local function post(path, headers, body)
  return ("POST %s HTTP/1.1\r\n%s%s\r\n%s"):format(path, HOST, headers, body or "")
end

describe("bough.serve.http", function()
  local server

  lazy_setup(function() server = start() end)
  lazy_teardown(function() server:stop() end)

  describe("a request", function()
    it("says what was asked for", function()
      local about = server:ask("PATCH /about/a%20b/%C3%A9/?x=1&y=a+b%2B&x=%2F&flag&=v&z= HTTP/1.1\r\nHost: x\r\n"
        .. "X-One: a\r\nx-one: b\r\nEmpty:\r\nContent-Length: 2\r\n\r\nhi")[1].json
      assert.equal("PATCH", about.method)
      assert.equal("/about/a%20b/%C3%A9/", about.path)
      assert.same({ "about", "a b", "é", "" }, about.segments)
      assert.equal("x=1&y=a+b%2B&x=%2F&flag&=v&z=", about.query)
      assert.same({ x = { "1", "/" }, y = { "a b+" }, flag = { "" }, [""] = { "v" }, z = { "" } }, about.params)
      assert.equal("a, b", about.headers["x-one"])
      assert.equal("", about.headers.empty)
      assert.equal("127.0.0.1", about.peer)
      assert.equal("HTTP/1.1", about.version)
      assert.equal(2, about.length)
    end)

    it("may name its host in the target, and have any method", function()
      local function about(line) return server:ask(line .. " HTTP/1.1\r\n" .. HOST .. "\r\n")[1].json end
      assert.equal("/about", about("GET http://elsewhere/about?a=b").path)
      assert.equal("a=b", about("GET http://elsewhere/about?a=b").query)
      assert.equal("no such route", about("GET http://elsewhere").error)
      assert.equal("FROB", about("FROB /about").method)
      assert.equal("no such route", about("OPTIONS *").error)
    end)

    it("with broken percent-encoding, or a zero byte, is refused", function()
      for _, path in ipairs { "/about/%zz", "/about/%", "/about/%2", "/about/%00", "/about?a=%g1", "/about?%=1" } do
        local answers, open = server:ask(("GET %s HTTP/1.1\r\n%s\r\n"):format(path, HOST))
        local answer = answers[1]
        assert.is_true(open)
        assert.equal(400, answer.status, path)
        assert.equal("invalid", answer.json.error_kind)
      end
    end)

    it("has an identity, which the answer tells", function()
      local first, second = server:get "/about", server:get "/about"
      local id = first.headers["x-request-id"]
      assert.equal(id, json.read(first.body).id)
      assert.truthy(id:find "^%x+%-%x+$")
      assert.not_equal(id, second.headers["x-request-id"])
      assert.truthy(server:get("/nowhere").headers["x-request-id"])
    end)
  end)

  describe("a body", function()
    it("comes with a length, in chunks, or not at all", function()
      local body = ("0123456789"):rep(30000)
      assert.equal(body, server:request { path = "/echo", method = "POST", body = body }.body)
      assert.equal("", server:request({ path = "/echo", method = "POST", body = "" }).body)
      assert.equal("", server:get("/echo").body)
      local answers = server:ask(post("/echo", "Transfer-Encoding: chunked\r\n",
        "3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n") .. GET, 2)
      assert.equal("abcde", answers[1].body)
      assert.equal("world", answers[2].json.hello)
    end)

    it("of any method is read", function()
      for _, method in ipairs { "GET", "DELETE", "PATCH", "PUT" } do
        local line = "%s /echo HTTP/1.1\r\nContent-Length: 3\r\n%s\r\nabc%s"
        local answers = server:ask(line:format(method, HOST, GET), 2)
        assert.equal("abc", answers[1].body, method)
        assert.equal(200, answers[2].status, method)
      end
    end)

    it("is read piece by piece", function()
      local count = json.read(server:request({ path = "/count", method = "POST", body = ("x"):rep(3000000) }).body)
      assert.equal(3000000, count.bytes)
      assert.truthy(count.pieces > 5, count.pieces)
    end)

    it("is not read ahead of need", function()
      local alone <close> = start()
      local c <close> = alone:connect()
      c:send(post("/long", "Content-Length: 100000000\r\n"))
      local sent = c:send(("x"):rep(64 << 20), 0.5)
      assert.truthy(sent < 32 << 20, sent) -- what the kernel buffers, and not what it is told to
      local _, _, kib = alone:counts()
      if not os.getenv "LD_PRELOAD" then assert.truthy(kib < 20000, kib) end -- the sanitizers want more
    end)

    it("above the limit is turned down, before it is sent where that can be", function()
      local function limited(headers, body) return server:last(post("/limited", headers, body))[1] end
      local answer = limited "Content-Length: 1001\r\nExpect: 100-continue\r\n"
      assert.equal(413, answer.status)
      assert.equal("the body is larger than 1000 bytes", answer.json.error)
      answer = limited("Content-Length: 3000000\r\n", ("x"):rep(3000000))
      assert.equal(413, answer.status)
      assert.equal("close", answer.headers.connection)
      -- nobody knows where that would end
      local chunk = "1000\r\n" .. ("x"):rep(4096) .. "\r\n"
      answer = limited("Transfer-Encoding: chunked\r\n", chunk:rep(1000))
      assert.equal(413, answer.status)
      assert.equal("resource", answer.json.error_kind)
      assert.equal(413, limited("Content-Length: 1000000000000000000\r\n", "abc").status)
      local answers = server:ask(post("/limited", "Content-Length: 1000\r\n", ("x"):rep(1000)))
      assert.equal(1000, answers[1].json.size)
      -- one that is here already costs nobody the connection
      local _, open = server:ask(post("/limited", "Content-Length: 1001\r\n", ("x"):rep(1001)))
      assert.is_true(open)
    end)

    it("that nobody asked for does not become the next request", function()
      local answers = server:last("DELETE /unasked HTTP/1.1\r\nContent-Length: 100000\r\n" .. HOST .. "\r\n" .. GET)
      assert.equal(1, #answers)
      assert.equal("close", answers[1].headers.connection)
      answers = server:ask("DELETE /unasked HTTP/1.1\r\nContent-Length: 5\r\n" .. HOST .. "\r\nhello" .. GET, 2)
      assert.equal("world", answers[2].json.hello)
    end)

    it("is asked for with 100 Continue", function()
      local c <close> = server:connect()
      c:send(post("/echo", "Content-Length: 3\r\nExpect: 100-continue\r\n"))
      local got = c:expect "\r\n\r\n"
      assert.equal("HTTP/1.1 100 Continue\r\n\r\n", got)
      c:send "abc"
      assert.equal("abc", http_client.parse(c:expect "abc")[1].body)
    end)

    it("of JSON is an object", function()
      local function ask(body) return server:request { path = "/json_body", method = "POST", body = body } end
      assert.equal('{"n":3}', ask('{"n": 3, "gone": null}').body)
      assert.equal('{"a":{"b":[1,null]}}', ask('{"a":{"b":[1.0,null],"c":null}}').body)
      for body, why in pairs {
        ["{"] = "not JSON", ["[1]"] = "not a JSON object", ["3"] = "neither", [""] = "not JSON", ["{} x"] = "not JSON",
        ["{a:1}"] = "not JSON", [('{"a":'):rep(100)] = "nested too deeply",
      } do
        local answer = ask(body)
        assert.equal(400, answer.status, body)
        assert.truthy(json.read(answer.body).error:find(why, 1, true), answer.body)
      end
    end)
  end)

  describe("an answer", function()
    it("is compressed when the client says so", function()
      local function encoding(header)
        local line = header and "Accept-Encoding: " .. header .. "\r\n" or ""
        local answers = server:ask(("GET /text?n=100 HTTP/1.1\r\n%s%s\r\n"):format(HOST, line))
        return answers[1].headers["content-encoding"]
      end
      for _, header in ipairs { "gzip", "GZIP", "x-gzip", "deflate, gzip", "gzip;q=1.0", "gzip; q=0.001", "*",
        "br,*;q=0.1", "identity;q=0, gzip;q=0.5", ",,gzip" } do
        assert.equal("gzip", encoding(header), header)
      end
      for _, header in ipairs { "identity", "gzip;q=0", "gzip; Q=0.000", "*;q=0", "gzip;q=0, *", "br", "gzipped", "",
        "x" } do
        assert.is_nil(encoding(header), header)
      end
      assert.is_nil(encoding(nil))
    end)

    it("is the same, compressed or not", function()
      for _, n in ipairs { 1, 100, 20000, 2000000 } do
        local wanted = ("text "):rep(n)
        local plain = server:get("/text?n=" .. n)
        local packed = server:get("/text?n=" .. n, { compressed = true })
        assert.equal(wanted, plain.body)
        assert.equal(tostring(#wanted), plain.headers["content-length"])
        assert.equal(wanted, packed.body)
        assert.equal(n > 50 and "Accept-Encoding" or nil, packed.headers.vary)
      end
      local small = server:ask("GET /text?n=1 HTTP/1.1\r\nAccept-Encoding: gzip\r\n" .. HOST .. "\r\n")[1]
      assert.is_nil(small.headers["content-encoding"])
    end)

    it("to HEAD has the headers of GET, and no body", function()
      for _, path in ipairs { "/json", "/text?n=100", "/nowhere", "/bulk?n=2", "/boom" } do
        local get = server:get(path)
        local heads, open, text = server:ask(("HEAD %s HTTP/1.1\r\n%s\r\n"):format(path, HOST), 1, true)
        assert.truthy(text:find "\r\n\r\n$", path)
        assert.equal(get.status, heads[1].status)
        for _, name in ipairs { "content-length", "content-type", "vary", "cache-control" } do
          assert.equal(get.headers[name], heads[1].headers[name], path .. " " .. name)
        end
        -- the length of a stream is not known: nothing may look like its end
        assert.equal(not path:find "bulk", open, path)
      end
    end)

    it("may be empty", function()
      local answer = server:get "/empty"
      assert.equal(204, answer.status)
      assert.equal("", answer.body)
      assert.is_nil(answer.headers["content-type"])
      assert.is_nil(answer.headers["content-length"])
    end)

    it("may be a stream of events, each of which comes at once", function()
      for _, compressed in ipairs { false, true } do
        local stream = server.client:open { url = server.url .. "/events?n=3&hold=1", compressed = compressed }
        assert.equal(200, stream.status)
        assert.equal("text/event-stream", stream.headers["content-type"])
        assert.equal("no-cache", stream.headers["cache-control"])
        for i = 1, 3 do
          assert.equal(("data: event %d, and much the same as the one before\n\n"):format(i), stream:read())
          server:get "/next"
        end
        assert.is_nil(stream:read())
        stream:close()
      end
    end)

    it("of events shrinks by what they have in common", function()
      local function length(n)
        local line = "GET /events?n=%d HTTP/1.1\r\nAccept-Encoding: gzip\r\n%s\r\n"
        return #server:ask(line:format(n, HOST))[1].body
      end
      assert.truthy(length(100) < 100 * 25, length(100))
    end)

    it("may be a large stream", function()
      for _, compressed in ipairs { false, true } do
        local answer = server:get("/bulk?n=200", { compressed = compressed, max_bytes = 1 << 24 })
        assert.equal(200 << 16, #answer.body)
        assert.equal(("0123456789abcdef"):rep(200 << 12), answer.body)
      end
      assert.equal(2 << 16, #server:last("GET /bulk?n=2 HTTP/1.0\r\n\r\n")[1].body) -- which knows no chunks
    end)

    it("may be a stream that tells its length, and keeps its word", function()
      local size = 100 << 16
      local answer = server:get(("/sized?n=100&size=%d"):format(size), { max_bytes = 1 << 24 })
      assert.equal(tostring(size), answer.headers["content-length"])
      assert.equal(size, #answer.body)
      answer = server:get(("/sized?n=100&size=%d"):format(size), { compressed = true, max_bytes = 1 << 24 })
      assert.equal(size, #answer.body)
      -- more than that is not sent, and less is an error
      assert.equal(1000, #server:get("/sized?n=100&size=1000").body)
      raises("transport", server.get, server, ("/sized?n=99&size=%d"):format(size), { max_bytes = 1 << 24 })
      assert.equal("", server:get("/sized?n=0&size=0").body)
      fixture.until_true("all to be over", function() return select(2, server:counts()) == 1 end)
      local heads, open = server:ask("HEAD /sized?n=1&size=65536 HTTP/1.1\r\n" .. HOST .. "\r\n", 1, true)
      assert.equal("65536", heads[1].headers["content-length"])
      assert.is_true(open)
    end)

    it("that fails in the middle is seen to be incomplete", function()
      for _, compressed in ipairs { false, true } do
        raises("transport", server.get, server, "/torn", { compressed = compressed })
      end
    end)

    it("says headers as they are, and never more than one in one", function()
      local headers = server:get("/headers").headers
      assert.equal("a=1, b=2", headers["set-cookie"])
      assert.equal("7", headers["x-number"])
      local answer = server:get "/header?v=a%0d%0aX-Other:%20b"
      assert.equal(500, answer.status)
      assert.is_nil(answer.headers["x-other"])
      assert.equal("plain", server:get("/header?v=plain").headers["x-said"])
      assert.equal(200, server:get("/header?v=%20").status)
      for _, query in ipairs { "v=%01", "v=%7f", "name=A%20B&v=x", "name=A:&v=x", "name=&v=x",
        "name=Content-Length&v=3", "name=Transfer-Encoding&v=chunked" } do
        assert.equal(500, server:get("/header?" .. query).status, query)
      end
    end)
  end)

  describe("errors", function()
    it("are JSON", function()
      local answer = server:get "/problem"
      assert.equal(418, answer.status)
      assert.same({ error = "no coffee", status = 418, error_kind = "unsupported" }, json.read(answer.body))
      assert.equal("1.5", answer.headers["retry-after"])
      assert.equal("tea", answer.headers["x-pot"])
      assert.equal("application/json", answer.headers["content-type"])
    end)

    it("of the library have a status by their kind", function()
      for kind, status in pairs { invalid = 400, auth = 401, denied = 403, not_found = 404, exists = 409, state = 409,
        busy = 409, unsupported = 422, resource = 507, timeout = 504, io = 500, corrupt = 500, transport = 500 } do
        local answer = server:get("/kind?k=" .. kind)
        assert.equal(status, answer.status, kind)
        local body = json.read(answer.body)
        assert.equal(status == 500 and "internal error" or "as told", body.error)
        assert.equal(status ~= 500 and kind or nil, body.error_kind)
      end
    end)

    it("of a handler are told to the log, and not to the client", function()
      local answer = server:get "/boom"
      assert.equal(500, answer.status)
      assert.same({ error = "internal error", status = 500 }, json.read(answer.body))
      for _, path in ipairs { "/table", "/silent", "/unsayable" } do
        assert.equal(500, server:get(path).status, path)
      end
      assert.equal('{"first":true}', server:get("/twice").body)
      local said = {}
      for _, entry in ipairs(server:log()) do said[#said + 1] = entry.message end
      said = table.concat(said, "\n")
      for _, text in ipairs { "GET /boom: .*the secret of the house", "GET /silent: no answer", "GET /table: ",
        "GET /twice: .*has an answer already", "GET /unsayable: .*no word for a function" } do
        assert.truthy(said:find(text), text .. " in " .. said)
      end
    end)
  end)

  describe("a connection", function()
    it("serves one request after another, also when all come at once", function()
      local answers, open = server:ask(GET:rep(20) .. post("/echo", "Content-Length: 3\r\n", "abc") .. GET, 22)
      assert.equal("abc", answers[21].body)
      assert.is_true(open)
    end)

    it("ends when the client says so", function()
      local answers = server:last("GET /json HTTP/1.1\r\nConnection: close\r\n" .. HOST .. "\r\n" .. GET)
      assert.equal(1, #answers)
      assert.equal("close", answers[1].headers.connection)
    end)

    it("may be one of HTTP/1.0", function()
      assert.equal("world", server:last("GET /json HTTP/1.0\r\n\r\n")[1].json.hello)
      local answers, open = server:ask "GET /json HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
      assert.equal("world", answers[1].json.hello)
      assert.is_true(open)
    end)

    it("may be closed by the client on its side before the answer", function()
      assert.equal(2, #server:last(GET .. GET, true))
    end)
  end)

  describe("nonsense", function()
    local function refused(status, bytes, is_ours)
      local answers, text = server:last(bytes)
      assert.truthy(answers[1], ("%q gets %q"):format(bytes:sub(1, 80), text:sub(1, 200)))
      assert.equal(status, answers[1].status, bytes:sub(1, 80))
      if is_ours ~= false then assert.equal(status, answers[1].json and answers[1].json.status, bytes:sub(1, 80)) end
    end

    it("is refused with a line that says why", function()
      refused(400, "GET /json HTTP/1.1\r\n\r\n")
      refused(400, "GET /json HTTP/1.1\r\n" .. HOST .. HOST .. "\r\n")
      refused(400, "GET /json HTTP/1.9\r\n" .. HOST .. "\r\n")
      refused(400, "GET /js on HTTP/1.1\r\n" .. HOST .. "\r\n")
      refused(400, "GET /js\1on HTTP/1.1\r\n" .. HOST .. "\r\n")
      refused(400, "G(T /json HTTP/1.1\r\n" .. HOST .. "\r\n")
      refused(400, ("G"):rep(100) .. " /json HTTP/1.1\r\n" .. HOST .. "\r\n")
      refused(400, "GET /json HTTP/1.1\r\nfoo : x\r\n" .. HOST .. "\r\n")
      refused(400, "GET /json HTTP/1.1\r\nX: a\1b\r\n" .. HOST .. "\r\n")
      refused(400, "GET /json HTTP/1.1\r\n: x\r\n" .. HOST .. "\r\n")
      -- these never reach us
      refused(505, "GET /json HTTP/2.0\r\n" .. HOST .. "\r\n", false)
      refused(400, "GET /json HTTP/1.1\r\nfoo\r\n" .. HOST .. "\r\n", false)
    end)

    it("whose end could be read in two ways is refused", function()
      refused(400, post("/echo", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"))
      refused(400, post("/echo", "Content-Length: 3\r\nContent-Length: 3\r\n", "abc"))
      refused(400, post("/echo", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"))
      refused(501, post("/echo", "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"))
      refused(400, "POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
      refused(400, post("/echo", "Content-Length: 1\r\n 0\r\n", "abcdefghij"))
      refused(400, post("/echo", "Transfer-Encoding: chun\r\n ked\r\n", "0\r\n\r\n"))
      for _, length in ipairs { "-1", "+3", "3, 3", "0x3", "3 3", "three" } do
        refused(400, post("/echo", "Content-Length: " .. length .. "\r\n", "abc"), false)
      end
      for _, size in ipairs { "zz", "-1", "" } do
        refused(400, post("/echo", "Transfer-Encoding: chunked\r\n", size .. "\r\nabc\r\n0\r\n\r\n"), false)
      end
    end)

    it("that is too much of something is refused", function()
      local function padded(n) return "GET /json HTTP/1.1\r\nX: " .. ("x"):rep(n) .. "\r\n" .. HOST .. "\r\n" end
      assert.equal(200, server:ask(padded(30000))[1].status)
      refused(431, padded(34000))
      refused(431, padded(500000), false)
      refused(431, "GET /json HTTP/1.1\r\n" .. ("X: y\r\n"):rep(101) .. HOST .. "\r\n")
      refused(431, "GET /json HTTP/1.1\r\n" .. ("X: y\r\n"):rep(20000) .. HOST .. "\r\n", false)
      refused(414, "GET /" .. ("x"):rep(9000) .. " HTTP/1.1\r\n" .. HOST .. "\r\n")
      refused(414, "GET /" .. ("x"):rep(500000) .. " HTTP/1.1\r\n" .. HOST .. "\r\n", false)
      assert.equal(404, server:ask("GET /" .. ("x"):rep(8000) .. " HTTP/1.1\r\n" .. HOST .. "\r\n")[1].status)
    end)

    it("that ends anywhere does no harm", function()
      local whole = "POST /echo/a%20b?c=d HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip;q=0.5\r\n"
        .. "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: x\r\n\r\n"
      local cut = {}
      for i = 0, #whole - 1 do
        cut[i] = server:connect()
        cut[i]:send(whole:sub(1, i))
        cut[i]:finish()
      end
      for i = 0, #whole - 1 do
        local text, ending = cut[i]:all()
        assert.not_equal("timeout", ending)
        local answers = http_client.parse(text)
        assert.truthy(not answers[1] or answers[1].status >= 400, text)
        cut[i]:close()
      end
      assert.equal("abc", server:ask(whole)[1].body)
      fixture.until_true("all to be over", function()
        local connections, requests = server:counts()
        return connections == 1 and requests == 1
      end)
    end)

    it("of any kind does no harm", function()
      local state = 42
      local function random(n)
        state = (state * 1103515245 + 12345) & 0x7fffffff
        return (state >> 8) % n
      end
      local seeds = { GET, post("/echo", "Content-Length: 3\r\n", "abc"),
        "HEAD /events?n=2 HTTP/1.1\r\n" .. HOST .. "\r\n",
        post("/count", "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", "3\r\nabc\r\n0\r\n\r\n"),
        "GET /text?n=100 HTTP/1.1\r\nAccept-Encoding: gzip\r\n" .. HOST .. "\r\n" }
      local clients = {}
      for round = 1, 400 do
        local bytes = {}
        if round % 4 == 0 then
          for i = 1, random(300) do bytes[i] = string.char(random(256)) end
        else
          local seed = seeds[random(#seeds) + 1] .. seeds[random(#seeds) + 1]
          for i = 1, #seed do bytes[i] = seed:sub(i, i) end
          for _ = 1, random(6) do
            local at = random(#bytes) + 1
            local how = random(4)
            if how == 0 then bytes[at] = string.char(random(256))
            elseif how == 1 then bytes[at] = ""
            elseif how == 2 then bytes[at] = bytes[at]:rep(random(2000))
            else bytes[at] = ("\r\n \t\0:%"):sub(random(7) + 1):sub(1, 1) end
          end
        end
        clients[#clients + 1] = server:connect()
        clients[#clients]:send(table.concat(bytes))
        clients[#clients]:finish()
        if #clients == 100 then
          for _, c in ipairs(clients) do
            assert.not_equal("timeout", select(2, c:all()))
            c:close()
          end
          clients = {}
        end
      end
      assert.equal(200, server:get("/json").status)
      fixture.until_true("all to be over", function() return select(2, server:counts()) == 1 end)
    end)
  end)

  describe("a client that goes", function()
    local function state() return json.read(server:get("/state").body) end

    it("is noticed while a request is worked on", function()
      local quick <close> = start "gone_seconds = 0.1"
      local function long() return json.read(quick:get("/state").body).long end
      for _, path in ipairs { "/long", "/cancelled" } do
        local c = quick:connect()
        c:send(("GET %s HTTP/1.1\r\n%s\r\n"):format(path, HOST))
        fixture.until_true("the request", function() return long() == "waiting" end)
        c:close()
        fixture.until_true("the end", function() return long() == (path == "/long" and "true" or "cancelled") end)
      end
      fixture.until_true("the log", function()
        local seen = 0
        for _, entry in ipairs(quick:log()) do
          if entry.gone then
            assert.equal(entry.path == "/long" and 200 or 499, entry.status)
            seen = seen + 1
          end
        end
        return seen == 2
      end)
    end)

    it("is noticed by who writes to it", function()
      local c = server:connect()
      c:send("GET /bulk?n=100000 HTTP/1.1\r\n" .. HOST .. "\r\n")
      c:expect "0123456789"
      c:close()
      fixture.until_true("the end", function() return state().written == false end)
    end)

    it("leaves nothing behind in the middle of a body", function()
      local c = server:connect()
      c:send(post("/count", "Content-Length: 1000000\r\n", "some"))
      fixture.until_true("the request", function() return select(2, server:counts()) == 2 end)
      c:close()
      fixture.until_true("the end", function() return select(2, server:counts()) == 1 end)
    end)
  end)

  describe("time", function()
    it("is limited for a header, for idling, for slow bodies and for slow readers", function()
      local quick <close> = start "header_seconds = 0.5, idle_seconds = 0.5, slow_seconds = 1, slow_bytes = 100000"
      local header, idle, body, reader = quick:connect(), quick:connect(), quick:connect(), quick:connect()
      header:send "GET /json HTTP/1.1\r\nHost: x\r\nX: "
      idle:send(GET)
      assert.truthy(idle:expect "world")
      body:send(post("/echo", "Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n"))
      reader:send("GET /bulk?n=100000 HTTP/1.1\r\n" .. HOST .. "\r\n")
      assert.equal("", (header:all(10)))
      assert.equal("", (idle:all(10)))
      local answer = http_client.parse((body:all(10)))[1]
      assert.equal(408, answer.status)
      assert.equal("the body comes too slowly", answer.json.error)
      fixture.until_true("the reader to be cut off", function()
        local connections, requests = quick:counts()
        return connections == 1 and requests == 1
      end)
      for _, c in ipairs { header, idle, body, reader } do c:close() end
    end)

    it("passes for others while many are slow", function()
      local slow = {}
      for i = 1, 300 do
        local c = server:connect()
        if i % 3 == 0 then
          c:send "GET /js"
        elseif i % 3 == 1 then
          c:send(post("/echo", "Content-Length: 1000000\r\n", "x"))
        else
          c:send("GET /bulk?n=1000 HTTP/1.1\r\n" .. HOST .. "\r\n")
        end
        slow[i] = c
      end
      local before = core.now()
      for i = 1, 300 do
        slow[i]:send "x"
        assert.equal(200, server:get("/json").status)
      end
      assert.truthy(core.now() - before < 10, core.now() - before)
      for _, c in ipairs(slow) do c:close() end
      fixture.until_true("their end", function() return select(2, server:counts()) == 1 end)
    end)
  end)

  it("has room for many silent streams", function()
    local fresh <close> = start()
    local streams, count = {}, 400
    local _, _, before = fresh:counts()
    for i = 1, count do
      streams[i] = fresh:connect()
      streams[i]:send("GET /idle HTTP/1.1\r\nAccept-Encoding: gzip\r\n" .. HOST .. "\r\n")
    end
    for i = 1, count do streams[i]:expect "gzip" end
    local _, requests, after = fresh:counts()
    assert.equal(count + 1, requests)
    -- the sanitizers want more
    local most = os.getenv "LD_PRELOAD" and 400 or 64
    assert.truthy((after - before) / count < most, (after - before) / count .. " KiB for each")
    for i = 1, count do streams[i]:close() end
  end)

  it("has a limit of connections", function()
    local small <close> = start "connections = 3, idle_seconds = 100"
    local held = {}
    for i = 1, 3 do
      held[i] = small:connect()
      held[i]:send(GET)
      assert.truthy(held[i]:expect "world")
    end
    local c <close> = small:connect()
    c:send(GET)
    assert.equal("timeout", select(2, c:read(0.3)))
    held[1]:close()
    assert.truthy(c:expect("world"):find "world")
    held[2]:close()
    held[3]:close()
    local polite <close> = start "per_ip = 2"
    local one <close> = polite:connect()
    local two <close> = polite:connect()
    one:send(GET)
    two:send(GET)
    assert.truthy(one:expect "world" and two:expect "world")
    local three <close> = polite:connect()
    three:send(GET)
    assert.equal("", (three:all(5)))
  end)

  it("listens on IPv6, and where it is told to", function()
    core.run(function()
      local six <close> = http.listen { address = "[::1]" }
      six:serve(function(r) r:reply(200, { peer = r.peer }) end)
      assert.equal(("http://[::1]:%d"):format(six.port), six.url)
      local client <close> = core.http()
      assert.equal('{"peer":"::1"}', client:request({ url = six.url }).body)
      raises("io", http.listen, { address = "::1", port = six.port })
      local any <close> = http.listen { address = "::" }
      any:serve(function(r) r:reply(200, { peer = r.peer }) end)
      assert.equal('{"peer":"127.0.0.1"}', client:request({ url = ("http://127.0.0.1:%d"):format(any.port) }).body)
    end)
    raises("invalid", http.listen, { address = "example.org" })
    raises("invalid", http.listen, { colour = "red" })
  end)

  describe("over TLS", function()
    local dir, secure

    lazy_setup(function()
      dir = scratch.dir "tls"
      registry.certificate(dir)
      local function read(name) return ('assert(io.open(%q)):read "a"'):format(dir .. "/" .. name) end
      secure = start(("cert = %s, key = %s, header_seconds = 1"):format(read "cert.pem", read "key.pem"), "https",
        { ca_file = dir .. "/cert.pem" })
    end)
    lazy_teardown(function() secure:stop() end)

    it("does the same", function()
      assert.equal('{"hello":"world"}', secure:get("/json").body)
      local body = ("0123456789"):rep(100000)
      assert.equal(body, secure:request({ path = "/echo", method = "POST", body = body }).body)
      assert.equal(200 << 16, #secure:get("/bulk?n=200", { compressed = true, max_bytes = 1 << 24 }).body)
      assert.equal(413, secure:request({ path = "/limited", method = "POST", body = body }).status)
      local stream = secure.client:open { url = secure.url .. "/events?n=1&hold=1", compressed = true }
      assert.truthy(stream:read():find "^data: event 1")
      secure:get "/next"
      assert.is_nil(stream:read())
      stream:close()
    end)

    it("speaks TLS 1.2 and later only", function()
      local function try(version)
        local line = "openssl s_client -brief -connect 127.0.0.1:%d -cipher ALL@SECLEVEL=0 %s </dev/null 2>&1 || :"
        return scratch.sh(line:format(secure.port, version)):match "Protocol version: (%S+)"
      end
      assert.is_nil(try "-tls1_1")
      assert.equal("TLSv1.2", try "-tls1_2")
      assert.equal("TLSv1.3", try "-tls1_3")
    end)

    it("gives nobody longer for the handshake", function()
      local c <close> = secure:connect()
      c:send "\22\3\1"
      assert.equal("eof", select(2, c:all(10)))
      local plain <close> = secure:connect()
      plain:send(GET)
      assert.not_equal("timeout", select(2, plain:all(10)))
      assert.equal(200, secure:get("/json").status)
    end)

    it("wants a certificate and its key", function()
      local cert = assert(io.open(dir .. "/cert.pem")):read "a"
      raises("invalid", http.listen, { cert = cert, key = "nonsense" })
      raises("invalid", http.listen, { cert = "nonsense", key = cert })
    end)
  end)

  describe("stop", function()
    it("answers what is under way, and then no more", function()
      local ending <close> = start()
      local idle <close> = ending:connect()
      local held <close> = ending:connect()
      idle:send(GET)
      assert.truthy(idle:expect "world")
      held:send("GET /events?n=2&hold=1 HTTP/1.1\r\n" .. HOST .. "\r\n")
      assert.truthy(held:expect "event 1")
      local other <close> = ending:connect()
      assert.equal(204, ending:get("/_stop?20").status)
      assert.equal("eof", select(2, idle:all(10)))
      assert.equal("eof", select(2, other:all(10)))
      held:send "" -- is still there
      assert.is_nil(ending:log()[#ending:log()].ended)
      raises("transport", ending.get, ending, "/json")
    end)

    it("cancels what takes too long, and says so", function()
      local ending <close> = start()
      local c <close> = ending:connect()
      c:send("GET /cancelled HTTP/1.1\r\n" .. HOST .. "\r\n")
      fixture.until_true("the request", function() return ending:get("/state").body:find "waiting" end)
      ending:get "/_stop?0.1"
      local text, how = c:all(10)
      assert.equal(503, http_client.parse(text)[1].status)
      assert.equal("eof", how)
      fixture.until_true("the end", function()
        local log = ending:log()
        return log[#log].ended
      end)
    end)

    it("works where the server and its client share a loop", function()
      local entries = {}
      core.run(function()
        local here <close> = http.listen { log = function(entry) entries[#entries + 1] = entry end }
        here:serve(function(r)
          if r.path == "/slow" then core.sleep(0.05) end
          r:reply(200, { body = r:body() })
        end)
        local client <close> = core.http()
        local tasks = {}
        for i = 1, 20 do
          tasks[i] = core.spawn(function()
            local url = here.url .. (i % 2 == 0 and "/slow" or "/")
            return client:request({ url = url, method = "POST", body = "b" .. i }).body
          end)
        end
        for i = 1, 20 do assert.equal(('{"body":"b%d"}'):format(i), tasks[i]:wait()) end
        here:stop(5)
        assert.is_true(here:wait(1))
        here:stop()
      end)
      assert.equal(20, #entries)
      local entry = entries[1]
      assert.equal("POST", entry.method)
      assert.equal(200, entry.status)
      assert.equal("127.0.0.1", entry.peer)
      assert.truthy(entry.bytes_in >= 2 and entry.bytes_out >= 13 and entry.seconds >= 0 and entry.id)
      assert.truthy(math.abs(entry.time - core.time()) < 60)
    end)

    it("frees a server that was dropped half-way", function()
      local good = pcall(core.run, function()
        local here <close> = http.listen()
        here:serve(function() core.sleep(1000) end)
        local client <close> = core.http()
        core.spawn(pcall, client.request, client, { url = here.url })
        fixture.until_true("the request", function()
          core.sleep(0.01)
          return select(2, here:counts()) == 1
        end)
        error "enough"
      end)
      assert.is_false(good)
    end)
  end)
end)

describe("bough.httpd", function()
  it("writes JSON", function()
    local array = setmetatable({}, { __array = true })
    for text, value in pairs {
      ["{}"] = {}, ["[]"] = array, ["[1,2.5,true,null]"] = { 1, 2.5, true, json.null }, ['"é"'] = "é",
      ['"\\"\\\\\\n\\r\\t\\b\\f\\u0001/\u{7F}"'] = "\"\\\n\r\t\b\f\1/\u{7F}",
      ['{"a":[{"b":"c"}]}'] = { a = { { b = "c" } } },
      ["3"] = 3.0, ["-7"] = -7, ["1700000000.123456"] = 1700000000.123456, ["1e+100"] = 1e100, ["0.1"] = 0.1,
      ['"\u{FFFD}a\u{FFFD}\u{FFFD}"'] = "\xffa\xed\xa0",
      ['"\\u0000"'] = "\0", ["9223372036854775807"] = math.maxinteger,
    } do
      assert.equal(text, httpd.json(value))
    end
    for _, wrong in ipairs { print, 0 / 0, 1 / 0, { [2.5] = 1 }, { [true] = 1 } } do
      assert.is_false(pcall(httpd.json, wrong))
    end
    local deep = {}
    deep.deep = deep
    assert.is_false(pcall(httpd.json, deep))
    local large = {}
    for i = 1, 5000 do large[i] = { name = ("x"):rep(i % 50), number = i } end
    assert.equal(5000, #json.read(httpd.json(large)))
  end)

  it("reads what is escaped", function()
    assert.equal("a b/c", httpd.unescape("a%20b%2Fc"))
    assert.equal("a+b", httpd.unescape("a+b"))
    assert.equal("a b", httpd.unescape("a+b", true))
    assert.equal("\0\xff", httpd.unescape "%00%fF")
    for _, wrong in ipairs { "%", "%1", "%g0", "a%0", "%%" } do assert.is_nil(httpd.unescape(wrong)) end
  end)

  it("tells of signals by a descriptor", function()
    local script = scratch.file [[
      local httpd = require "bough.httpd"
      local signals = httpd.signals { "TERM", "USR1" }
      assert(signals:read() == nil)
      os.execute "kill -USR1 $PPID"
      local core = require "bough.core"
      local poll = core.poll(signals:fd())
      core.run(function()
        assert(poll:wait(10))
        io.write(signals:read(), " ")
        os.execute "kill -TERM $PPID"
        assert(poll:wait(10))
        print(signals:read())
      end)
      assert(not pcall(httpd.signals, { "NONSENSE" }))
      poll:close()
      signals:close()
    ]]
    local lua = require("spec.support.arena").lua()
    assert.equal("USR1 TERM\n", scratch.sh(lua .. " " .. scratch.quote(script)))
  end)

  it("depends on nothing of the core", function()
    local path = package.searchpath("bough.httpd", package.cpath)
    local wanted = scratch.sh("nm -D --undefined-only " .. scratch.quote(path))
    assert.is_nil(wanted:find "bough_")
    local given = scratch.sh("nm -D --defined-only " .. scratch.quote(path))
    assert.equal("luaopen_bough_httpd", given:match "T (%S+)")
    assert.equal(1, select(2, given:gsub("\n", "\n")))
  end)
end)
