--- The ConTree engine against `bough serve` with a proxy between them that breaks things: for each fault the right
--- result or one clear error in time, no second run on the server, nothing left behind.

local bough = require "bough"
local contree_api = require "bough.contree.api"
local follow = require "bough.contree.follow"
local operations = require "bough.contree.operations"
local proxy = require "spec.support.proxy"
local raises = require "spec.support.raises"
local serve_process = require "spec.support.serve_process"

local PATIENCE = 30 -- seconds for what must come

describe("with faults on the way to the service", function()
  local server, front, direct, box, base, api

  lazy_setup(function()
    server = serve_process.start()
    local host, path = server.url:match "^http://([^/]+)(.*)$"
    front = proxy.start { upstream = host }
    direct = bough.open(server.url, { token = serve_process.TOKEN })
    front:handle "return function() return { forward = true } end"
    box = bough.open(front.url .. path, { token = serve_process.TOKEN })
    base = box.images:use "busybox"
    api = contree_api.new { url = front.url .. path, token = serve_process.TOKEN }
  end)

  lazy_teardown(function()
    front:handle "return function() return { forward = true } end"
    api:close()
    box:close()
    direct:close()
    front:stop()
    server:stop()
  end)

  -- A function of the proxy that spoils requests: `what` is a Lua expression over request and state that gives what is
  -- to be done, or nil for nothing.
  local function spoil(what)
    front:handle(([[return function(request, state)
      local method, path = request.method, request.path
      local is_spawn = method == "POST" and path:find("/instances", 1, true) ~= nil
      local is_events = path:find("/events", 1, true) ~= nil
      local is_status = method == "GET" and path:find("/operations/[%%x-]+$") ~= nil
      local function times(name, n)
        state[name] = (state[name] or 0) + 1
        return state[name] <= n
      end
      local how = %s
      return how or { forward = true }
    end]]):format(what))
  end

  local function heal() spoil "nil" end

  after_each(heal)

  -- The operations that the server knows.
  local function count_operations()
    local count = 0
    for _ in operations.list(api, { kind = "instance" }) do count = count + 1 end
    return count
  end

  -- What `body` gives or raises in time, and how many operations it has made on the server.
  local function outcome(body)
    heal()
    local before = count_operations()
    return function(what)
      spoil(what)
      local good, value = pcall(bough.deadline, PATIENCE, body)
      heal()
      return good, value, count_operations() - before
    end
  end

  local function run_through(what)
    return outcome(function() return base:run("echo out; echo err >&2; exit 3") end)(what)
  end

  local function assert_good(what)
    local good, image, made = run_through(what)
    assert.is_true(good, what .. ": " .. tostring(image))
    assert.same({ "out\n", "err\n", 3 }, { image.stdout, image.stderr, image.exit_code }, what)
    assert.equal(1, made, what)
  end

  describe("a run comes out right, once, although", function()
    for name, what in pairs {
      ["the service is too busy for it at first"] =
        [[is_spawn and times("a", 3) and { status = 429, headers = { ["Retry-After"] = "0.05" }, body = "{}" }]],
      ["it is too early for it at first"] = [[is_spawn and times("a", 2) and { status = 425, body = "no JSON" }]],
      ["the events are not there yet"] =
        [[is_events and times("a", 2) and { status = 425, headers = { ["Retry-After"] = "0.05" } }]],
      ["the events answer with 5xx in a burst"] = [[is_events and times("a", 3) and { status = 502 + state.a % 3 }]],
      ["the events are gone for a moment"] =
        [[is_events and times("a", 1) and { status = 410, headers = { ["Retry-After"] = "0.01" } }]],
      ["there is no way to the events"] = [[is_events and { status = 404, body = '{"error":"no route"}' }]],
      ["the events are said to be unacceptable"] = [[is_events and { status = 406 }]],
      ["the status answers with 5xx in a burst"] = [[is_status and times("a", 3) and { status = 503 }]],
      ["the status is cut off"] = [[is_status and times("a", 2) and { forward = true, cut_at = 40 }]],
      ["the status is cut off by a reset"] =
        [[is_status and times("a", 2) and { forward = true, cut_at = 40, reset = true }]],
      ["the connection is half closed in the status"] =
        [[is_status and times("a", 2) and { forward = true, cut_at = 10, half = true }]],
      ["the events are cut off, half closed, reset and cut off"] =
        [[is_events and times("a", 4) and { forward = true, cut_at = 60 * state.a, half = state.a == 2,
          reset = state.a == 3 }]],
      ["the headers come byte by byte"] = [[{ forward = true, slow_head = 0.001 }]],
      ["the status comes in no hurry"] = [[is_status and { forward = true, slow_head = 0.002, delay = 0.05 }]],
      ["every answer comes late"] = [[{ forward = true, delay = 0.1 }]],
      ["events come twice"] =
        [[is_events and { forward = true, drop = { "accept-encoding" }, duplicate = 1 + (state.n or 0) }]],
    } do
      it(name, function() assert_good(what) end)
    end
  end)

  describe("a run fails clearly, and is not done twice, when", function()
    local function assert_bad(kinds, made_at_most, what)
      local good, problem, made = run_through(what)
      assert.is_false(good, what)
      assert.is_true(bough.is_error(problem), tostring(problem))
      assert.is_true(kinds[problem.kind], what .. ": " .. tostring(problem))
      assert.is_nil(tostring(problem):find "\n")
      assert.is_nil(tostring(problem):find(serve_process.TOKEN, 1, true))
      assert.is_true(made <= made_at_most, ("%s: %d runs"):format(what, made))
      return problem
    end

    it("the service answers the start with 5xx: nothing tells whether it was taken", function()
      for _, status in ipairs { 500, 502, 503, 504 } do
        local problem = assert_bad({ api = true, resource = true, transport = true }, 0,
          ("is_spawn and { status = %d, body = '{\"error\":\"broken\",\"status\":%d}' }"):format(status, status))
        assert.equal(status, problem.status)
      end
      assert_bad({ api = true }, 1, [[is_spawn and { status = 502, body = "<html>Bad Gateway</html>" }]])
    end)

    it("the answer to the start is lost: it says that the run may have begun", function()
      for _, how in ipairs { "cut_at = 0", "cut_at = 20", "cut_at = 20, reset = true", "cut_at = 5, half = true" } do
        local problem = assert_bad({ transport = true, protocol = true }, 1,
          ("is_spawn and { forward = true, %s }"):format(how))
        assert.match("may have", problem.message, 1, true)
      end
    end)

    it("the service refuses it", function()
      for status, kind in pairs { [400] = "invalid", [401] = "auth", [403] = "denied", [404] = "not_found",
        [409] = "state", [422] = "invalid" } do
        local problem = assert_bad({ [kind] = true }, 0,
          ("is_spawn and { status = %d, body = '{\"error\":\"because\",\"status\":%d}' }"):format(status, status))
        assert.match("because", problem.message, 1, true)
      end
    end)

    it("the answer to the start is none", function()
      for _, body in ipairs { "", "null", "[]", "{", '"x"', '{"uuid":7}', ("x"):rep(100000) } do
        assert_bad({ protocol = true, transport = true }, 1, ("is_spawn and { status = 201, body = %q }"):format(body))
      end
    end)

    it("the service sends us elsewhere, once or in a circle: nobody else gets the token", function()
      for _, location in ipairs { "path .. '?inflight=1'", "'http://localhost:1' .. path", "'//example.invalid/'" } do
        local problem = assert_bad({ protocol = true, api = true }, 1,
          ("is_status and times('a', 3) and { status = 302, headers = { Location = %s } }"):format(location))
        assert.match("redirect", problem.message, 1, true)
      end
      assert_bad({ protocol = true, api = true, transport = true }, 0,
        [[is_spawn and { status = 302, headers = { Location = path } }]])
      assert_bad({ protocol = true, api = true, transport = true }, 1,
        [[is_status and { status = 302, headers = { Location = path } }]])
    end)

    it("the service falls silent, at the latest at the caller's deadline", function()
      for _, what in ipairs {
        "is_spawn and { forward = true, stall_at = 0 }", "is_events and { forward = true, stall_at = 30 }",
        "(is_events or is_status) and { forward = true, stall_at = 5 }",
        "(is_events or is_status) and { status = 503, headers = { ['Retry-After'] = '3600' } }",
      } do
        heal()
        local before = count_operations()
        spoil(what)
        local problem = raises("timeout", bough.deadline, 1, base.run, base, "true")
        assert.equal("deadline", problem.op)
        heal()
        assert.is_true(count_operations() - before <= 1, what)
      end
    end)
  end)

  it("an event that is no event is passed over or told, never lost in silence", function()
    for _, data in ipairs { "id: 0\n\n", ": comment\n\n", "data: []\n\n", "data:\n\n", "event: x\n\n", "id: x\n\n" } do
      spoil(([[is_events and times("a", 1) and { headers = { ["Content-Type"] = "text/event-stream" }, chunked = true,
        body = %q }]]):format(data))
      assert.equal("x\n", bough.deadline(PATIENCE, base.run, base, "echo x").stdout)
    end
    spoil [[is_events and { headers = { ["Content-Type"] = "text/event-stream" }, chunked = true,
      body = "id: 0\ndata: {broken\n\n" }]]
    local good, problem = pcall(bough.deadline, PATIENCE, base.run, base, "echo x")
    assert.is_true(good or problem.kind == "protocol", tostring(problem))
  end)

  -- One operation with a log of some length, and what a clean connection tells of it.
  local function logged()
    heal()
    local body = {
      image = base.uuid, command = "for i in 1 2 3; do echo out $i; echo err $i >&2; done; printf '\\377'; exit 5",
      shell = true, disposable = true, networking = { enabled = false },
    }
    local id = operations.spawn(api, body)
    local events = {}
    local follower <close> = follow.follow(api, id)
    for event in follower.next, follower do events[#events + 1] = event end
    return id, events
  end

  local function assert_same_events(expected, id, message)
    local follower <close> = follow.follow(api, id)
    local seen = 0
    for event in follower.next, follower do
      seen = seen + 1
      assert.equal(expected[seen].id, event.id, message)
      assert.same(expected[seen].data, event.data, message)
    end
    assert.equal(#expected, seen, message)
    assert.is_true(follower.completed, message)
  end

  for _, encoding in ipairs { "as it is", "in gzip" } do
    it("events cut at every byte, " .. encoding .. ", are all there, once, in order", function()
      local id, expected = logged()
      local drop = encoding == "in gzip" and "{}" or '{ "accept-encoding" }'
      spoil(("is_events and { forward = true, drop = %s }"):format(drop))
      assert_same_events(expected, id, "whole")
      local size = front:log()[1].sent
      assert.is_true(size > 300, "a log of " .. size)
      for at = 0, size do
        spoil(("is_events and times('a', 1) and { forward = true, drop = %s, cut_at = %d, reset = %s }"):format(drop,
          at, tostring(at % 3 == 1)))
        bough.deadline(PATIENCE, assert_same_events, expected, id, "cut at " .. at)
      end
    end)
  end

  it("live events cut again and again are all there, once, in order", function()
    local lines = {}
    spoil [[is_events and { forward = true, drop = { "accept-encoding" }, cut_at = 700 + 97 * (function()
      state.n = (state.n or 0) + 1
      return state.n
    end)() }]]
    local image = bough.deadline(PATIENCE, base.run, base, {
      shell = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.01; done", text = "lines",
      stdout = function(line) lines[#lines + 1] = line end, disposable = true,
    })
    assert.equal(0, image.exit_code)
    assert.equal(60, #lines)
    for i, line in ipairs(lines) do assert.equal("line " .. i - 1, line) end
    local cuts = 0
    for _, entry in ipairs(front:log()) do
      if entry.failed then cuts = cuts + 1 end
    end
    assert.is_true(cuts >= 2, cuts .. " cuts")
  end)

  it("a process's input arrives once, in order, when the service is busy between", function()
    spoil [[path:find("/stdin", 1, true) and times("a", 6) and state.a % 2 == 1 and { status = 429,
      headers = { ["Retry-After"] = "0.01" } }]]
    local process <close> = base:popen { "cat", stdin = bough.PIPE }
    for i = 1, 20 do process.stdin:write(i, "\n"):flush() end
    process.stdin:close()
    local expected = {}
    for i = 1, 20 do expected[i] = i .. "\n" end
    assert.equal(table.concat(expected), process.stdout:read "a")
    assert.equal(0, process:wait())
  end)

  it("input whose answer is lost is not sent again: the process ends or its input fails", function()
    spoil [[path:find("/stdin", 1, true) and times("a", 1) and { forward = true, cut_at = 0, reset = true }]]
    local process <close> = base:popen { "cat", stdin = bough.PIPE }
    local good = pcall(function()
      for i = 1, 1000 do
        process.stdin:write(i, "\n"):flush()
        bough.sleep(0)
      end
      process.stdin:close()
    end)
    heal()
    process.stdin:close()
    local waited, problem = pcall(bough.deadline, PATIENCE, process.wait, process)
    assert.is_true(waited or problem.kind ~= "timeout", tostring(problem))
    local text = process.stdout:read "a"
    for line, next_line in text:gmatch "(%d+)\n()" do
      local following = text:match("^(%d+)\n", next_line)
      if following then assert.equal(tonumber(line) + 1, tonumber(following)) end -- nothing twice
    end
    assert.is_false(good and waited and process:poll() == 0 and #text < 3893, "input was lost in silence")
  end)

  it("a cancel is sent until it has arrived, once is enough", function()
    spoil [[method == "DELETE" and times("a", 2) and { status = 503 }]]
    local started = base:start "sleep 900"
    started:close()
    heal()
    local id = operations.list(api, { kind = "instance" })().uuid
    bough.deadline(PATIENCE, function()
      while not operations.is_terminal(operations.get(api, id).status) do bough.sleep(0.02) end
    end)
    assert.equal("CANCELLED", operations.get(api, id).status)
  end)

  it("files are sent whole or not at all", function()
    local content = ("0123456789abcdef"):rep(20000)
    spoil [[method == "POST" and path:find("/files$") and times("a", 2) and { status = 429,
      headers = { ["Retry-After"] = "0.01" } }]]
    local image = base:run { "sha256sum", "/f", files = { ["/f"] = bough.bytes(content) } }
    assert.match("^%x+", image.stdout)
    assert.equal(content, image:read "/f")
    spoil [[path:find("/download", 1, true) and times("a", 1) and { forward = true, cut_at = 1000 }]]
    local good, problem = pcall(image.read, image, "/f")
    assert.is_true(good and problem == content or not good and problem.kind == "transport", tostring(problem))
    spoil [[path:find("/download", 1, true) and { forward = true, cut_at = 1000, reset = true }]]
    raises("transport", image.read, image, "/f")
  end)
end)
