--- Commands on a ConTree service: what is asked of it, how often, and what comes of its answers.

local bough = require "bough"
local canned = require "spec.engine.fixture".read_file "spec/support/contree_canned.lua"
local cjson = require "cjson"
local fixture = require "spec.engine.fixture"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"
local stub = require "spec.support.contree_stub"
local system = require "system"

local TOKEN = "a-very-secret-token"

describe("on a ConTree service", function()
  local server, box, base

  setup(function() server = stub.start() end)

  teardown(function() server:stop() end)

  local function open(opts)
    local all = { token = TOKEN }
    for name, value in pairs(opts or {}) do all[name] = value end
    return bough.open(server.url, all)
  end

  before_each(function()
    server:handle(canned)
    box = open()
    base = box.images:get "base"
  end)

  after_each(function()
    if not box.closed then box:close() end
    server:check()
  end)

  -- The requests so far for an operation of the API, "POST /instances"; those for events, which are many, apart.
  local function asked(what)
    local found = {}
    for _, entry in ipairs(server:log()) do
      if entry.operation == what then found[#found + 1] = entry end
    end
    return found
  end

  local function count(what) return #asked(what) end

  local SPAWN, CANCEL = "POST /instances", "DELETE /operations/{uuid}"
  local EXEC, INPUT = "POST /operations/{uuid}/subprocesses", "POST /operations/{uuid}/subprocesses/{spid}/stdin"
  local SIGNAL, TAG = "DELETE /operations/{uuid}/subprocesses/{spid}", "PATCH /images/{uuid}/tag"

  local function body(what, i)
    local all = asked(what)
    return cjson.decode(all[i or #all].body)
  end

  local function until_asked(what, number)
    fixture.until_true(what, function() return count(what) >= (number or 1) end)
  end

  describe("an engine", function()
    it("is opened without a request, and shows no token", function()
      local before = #server:log()
      local other = open { max_concurrency = 5, retry = { attempts = 2 }, timeout = 10, project = "p" }
      assert.equal(before, #server:log())
      for _, object in ipairs { other, other.images, other.instances } do
        assert.is_nil(tostring(object):find(TOKEN, 1, true))
      end
      assert.match(server.url, tostring(other), 1, true)
      other:close()
      raises("closed", other.images.get, other.images, "base")
      assert.equal(before, #server:log())
    end)

    it("refuses options nobody knows, with the nearest name, and values that are none", function()
      local function refused(named, opts, kind)
        local problem = raises(kind or "invalid", open, opts)
        assert.match(named, problem.message, 1, true)
        assert.is_nil(tostring(problem):find(TOKEN, 1, true))
      end
      refused('"max_concurrency"', { max_concurency = 1 })
      refused('"token"', { api_key = "x" })
      refused("max_concurrency", { max_concurrency = 0 })
      refused("timeout", { timeout = -1 })
      refused("retry", { retry = 3 })
      refused("attempts", { retry = { attemps = 3 } })
      refused("log", { log = true })
      refused("verify", { verify = "no" })
      refused("limits.memory", { limits = { memory = "1G" } }, "unsupported")
      refused("limit", { limits = { dsk = 1 } })
      raises("invalid", bough.open, server.url .. "?token=" .. TOKEN, { token = TOKEN })
      local problem = raises("invalid", bough.open, "http://me:" .. TOKEN .. "@127.0.0.1/", { token = TOKEN })
      assert.is_nil(tostring(problem):find(TOKEN, 1, true))
      raises("auth", bough.open, "http://service.example", { token = TOKEN })
      bough.open("http://service.example", { token = TOKEN, insecure = true }):close()
      raises("invalid", bough.open, "contree://a/b")
      raises("invalid", bough.open, "contree://one", { profile = "two" })
      raises("unsupported", bough.open, "podman://")
    end)

    it("tells who we are, what we may, and what cannot be done", function()
      local info = box:info()
      assert.equal(server.url, info.url)
      assert.is_true(info.permissions.spawn)
      assert.is_false(info.permissions["import"])
      assert.equal(3600, info.limits.instance_max_timeout)
      assert.equal("integer", math.type(info.token_expiration))
      local words = table.concat(info.unsupported, " ")
      for _, name in ipairs { "pty", "gc", "limits.memory", "cache" } do assert.match(name, words, 1, true) end
      assert.equal(1, count "GET /whoami")
      box:info()
      assert.equal(1, count "GET /whoami")
      box:info { refresh = true }
      assert.equal(2, count "GET /whoami")
    end)
  end)

  describe("a run", function()
    it("is one request to start it, one stream, one look at its record", function()
      local image = base:run "out hello;err oops"
      assert.equal("hello\n", image.stdout)
      assert.equal("oops\n", image.stderr)
      assert.equal(1, count(SPAWN))
      assert.equal(1, count "GET /operations/{uuid}/events")
      assert.equal(1, count "GET /operations/{uuid}")
      assert.equal(0, count(CANCEL))
      assert.equal(base.uuid, image.parent_uuid)
      assert.equal("run", image.origin)
      assert.equal(1234, image.size)
      assert.equal(0.5, image.elapsed_time)
      assert.equal(2048 * 1024, image.result.max_rss)
      assert.equal(0.25, image.result.user_time)
      assert.same({}, image.result.truncated)
    end)

    it("asks for what it is given, and for nothing that it is not", function()
      base:run { "out", "a b", env = { A = "1" }, cwd = "/tmp", hostname = "box", disposable = true, stdin = "in\n" }
      assert.same({
        command = "out", args = { "a b" }, shell = false, env = { A = "1" }, cwd = "/tmp", hostname = "box",
        disposable = true, image = base.uuid, networking = { enabled = false }, timeout = 3600,
        stdin = { value = "in\n", encoding = "ascii", close = true }, truncate_output_at = 1 << 20,
      }, body(SPAWN))
      base:run "out x"
      assert.same({
        command = "out x", shell = true, cwd = "/", hostname = "bough", disposable = false, image = base.uuid,
        networking = { enabled = false }, timeout = 3600, stdin = { value = "", encoding = "ascii", close = true },
        truncate_output_at = 1 << 20,
      }, body(SPAWN))
    end)

    it("L9.19 has its time limit rounded up to whole seconds, and that of the service where it has none", function()
      for given, sent in pairs { [0.2] = 1, [1] = 1, [1.5] = 2, [59.001] = 60, [7200] = 3600 } do
        base:run { "out", timeout = given }
        assert.equal(sent, body(SPAWN).timeout)
      end
      base:run { "out", timeout = math.huge }
      assert.equal(3600, body(SPAWN).timeout)
      local before = count(SPAWN)
      raises("invalid", base.run, base, { "out", timeout = 0 })
      raises("invalid", base.run, base, { "out", timeout = -1 })
      assert.equal(before, count(SPAWN))
    end)

    it("needs not ask who we are when it is told all", function()
      local other = open { max_concurrency = 2 }
      local image = other.images:get(base.uuid)
      image:run { "out", timeout = 5 }
      assert.equal(0, count "GET /whoami")
      assert.equal(5, body(SPAWN).timeout)
      other:close()
    end)

    it("has a user by number, or by the name that the image gives him", function()
      for user, ids in pairs {
        ["7:8"] = { 7, 8 }, ["0"] = { 0, 0 }, jane = { 1000, 1001 }, ["jane:staff"] = { 1000, 50 },
        ["1000"] = { 1000, 1001 }, ["9"] = { 9, 0 }, ["9:staff"] = { 9, 50 },
      } do
        base:run { "out", user = user }
        local sent = body(SPAWN)
        assert.same(ids, { sent.uid, sent.gid }, user)
      end
      assert.equal(2, count "GET /inspect/{uuid}/download") -- each file once
      local before = count(SPAWN)
      assert.match('"joe"', raises("not_found", base.run, base, { "out", user = "joe" }).message, 1, true)
      assert.match('"none"', raises("not_found", base.run, base, { "out", user = "0:none" }).message, 1, true)
      assert.equal(before, count(SPAWN))
    end)

    it("takes names out of the environment by env, and joins stderr by the shell", function()
      base:run { "out", "x", env = { B = false, A = false, C = "1" } }
      local sent = body(SPAWN)
      assert.same({ "env", { "-u", "A", "-u", "B", "out", "x" }, { C = "1" } }, { sent.command, sent.args, sent.env })
      base:run { "out", "x", stderr = bough.STDOUT }
      sent = body(SPAWN)
      assert.same({ "/bin/sh", { "-c", 'exec "$@" 2>&1', "sh", "out", "x" }, false },
        { sent.command, sent.args, sent.shell })
      base:run { shell = "out x", stderr = bough.STDOUT }
      sent = body(SPAWN)
      assert.same({ "exec 2>&1\nout x", true }, { sent.command, sent.shell })
      local image = base:run { shell = "out x", stderr = bough.STDOUT, env = { A = false } }
      sent = body(SPAWN)
      assert.same({ "env", { "-u", "A", "/bin/sh", "-c", "exec 2>&1\nout x" } }, { sent.command, sent.args })
      assert.is_nil(image.stderr)
    end)

    it("sends what is no text in base64, and asks for no more output than is wanted", function()
      local image = base:run { "cat", stdin = "\0\xff", truncate_output_at = 20 << 20 }
      assert.equal("AP8=", body(SPAWN).stdin.value)
      assert.equal(10 << 20, body(SPAWN).truncate_output_at)
      assert.is_string(image.stdout)
      base:run { "out", stdout = false, stderr = false }
      assert.equal(1, body(SPAWN).truncate_output_at)
      base:run { "out", stdout = function() end, stderr = false }
      assert.equal(10 << 20, body(SPAWN).truncate_output_at)
      base:run { "out", stdout = false, truncate_output_at = 77 }
      assert.equal(77, body(SPAWN).truncate_output_at)
    end)

    it("tells how much of its output was dropped", function()
      assert.same({ stdout = 5 }, base:run("out x;dropped stdout 5").result.truncated)
      local several = base:run "dropped stdout 3;dropped stdout 7;dropped stderr 1"
      assert.same({ stdout = 7, stderr = 1 }, several.result.truncated)
      local image = base:run { shell = "out 12345", truncate_output_at = 0 }
      assert.equal("", image.stdout)
      assert.same({ stdout = 6 }, image.result.truncated)
    end)

    it("has the network that it asks for, and a limit of what it may write", function()
      base:run { "out", limits = { disk = "1G" } }
      assert.same({ max_layer_bytes = 1 << 30 }, body(SPAWN).resources_limits)
      local other = open { limits = { disk = "2G" } }
      local image = other.images:get(base.uuid)
      image:run "out"
      assert.same({ max_layer_bytes = 2 << 30 }, body(SPAWN).resources_limits)
      image:run { "out", limits = { disk = "1G" } }
      assert.same({ max_layer_bytes = 1 << 30 }, body(SPAWN).resources_limits)
      other:close()
    end)

    it("C25 that ends badly is a result: a code, a signal, a time limit", function()
      local image = base:run "exit 3"
      assert.same({ 3, false, false }, { image.exit_code, image.ok, image.timed_out })
      assert.is_nil(image.signal)
      local late = base:run "out so far;late"
      assert.same({ 137, 9, true, "so far\n" }, { late.exit_code, late.signal, late.timed_out, late.stdout })
      assert.equal(0, count(CANCEL))
      local problem = raises("timeout", base.run, base, { shell = "out x;late", check = true })
      assert.equal("x\n", problem.result.stdout) -- L9.20
    end)

    it("C26 finds its image wherever the record has it", function()
      local one = base:run "out"
      local two = base:run { "out", env = { IMAGE = "result" } }
      assert.is_string(one.uuid)
      assert.is_string(two.uuid)
      assert.not_equal(one.uuid, two.uuid)
    end)

    it("that the service fails at raises what it says", function()
      local problem = raises("not_found", base.run, base, { "missing" })
      assert.match('"missing"', problem.message, 1, true)
      raises("resource", base.run, base, "fail resource out of room")
      assert.match("broke down", raises("api", base.run, base, "fail nonsense it broke down").message, 1, true)
      assert.match("does not say why", raises("api", base.run, base, "fail").message, 1, true)
      -- kinds that would tell of whoever waits here
      raises("api", base.run, base, "fail cancelled x")
      raises("not_found", base.start, base, { "missing" })
    end)

    it("L9.11 gets its tag by one request, when it went well", function()
      assert.is_nil(base:run("out").tag)
      assert.equal(0, count(TAG))
      assert.equal("one", base:run({ "out", tag = "one" }).tag)
      assert.equal(1, count(TAG))
      assert.same({ tag = "one" }, body(TAG))
      assert.equal("two", base:run({ shell = "exit 1", tag = "two" }).tag)
      raises("exit", base.run, base, { shell = "exit 1", tag = "three", check = true })
      assert.equal(2, count(TAG))
      assert.equal("three", base:run({ shell = "exit 0", tag = "three", check = true }).tag)
      assert.equal(3, count(TAG))
      raises("invalid", base.run, base, { "out", tag = "Capital" })
      assert.equal(5, count(SPAWN))
    end)

    it("L9.12 that is disposable and tagged is refused before anything is sent", function()
      local before = #server:log()
      raises("invalid", base.run, base, { "out", tag = "x", disposable = true })
      assert.equal(before, #server:log())
      local image = base:run { "out", disposable = true }
      assert.is_nil(image.uuid)
      assert.equal(0, count(TAG))
    end)

    it("L9.18 is one operation however often it is waited for", function()
      local image = base:start "out x"
      for _ = 1, 3 do assert.equal(image, image:wait()) end
      local again = bough.all { function() return image:wait() end, function() return image:wait() end }
      assert.equal(image, again[2])
      assert.equal(1, count(SPAWN))
    end)

    it("L9.20 that runs into a deadline sends one cancel", function()
      raises("timeout", bough.deadline, 0.2, base.run, base, "wait")
      until_asked(CANCEL)
      assert.equal(0, base:run("out").exit_code)
      assert.equal(1, count(CANCEL))
    end)

    it("L9.46 whose task is cancelled runs its closers, and sends one cancel", function()
      local closed
      local task = bough.spawn(function()
        local _ <close> = setmetatable({}, { __close = function(_, problem) closed = problem.kind end })
        base:run "wait"
      end)
      until_asked "GET /operations/{uuid}/events"
      task:cancel()
      raises("cancelled", task.wait, task)
      assert.equal("cancelled", closed)
      until_asked(CANCEL)
      base:run "out"
      assert.equal(1, count(CANCEL))
      assert.equal(2, count(SPAWN))
    end)

    it("that is closed wakes who waits, at once, and sends one cancel", function()
      local image = base:start { "wait", env = { CANCEL = "slow" } }
      local waiters = { bough.spawn(image.wait, image), bough.spawn(image.wait, image) }
      bough.step(0)
      local began = system.monotime()
      image:close()
      image:close()
      for _, waiter in ipairs(waiters) do raises("cancelled", waiter.wait, waiter) end
      assert.is_true(system.monotime() - began < 0.5)
      until_asked(CANCEL)
      assert.equal(1, count(CANCEL))
    end)

    it("C28 that ends at the moment of its cancel is no mistake", function()
      local image = base:start { "wait", env = { CANCEL = "late" } }
      image:close()
      raises("cancelled", image.wait, image)
      until_asked(CANCEL)
      assert.equal(0, base:run("out").exit_code)
      assert.equal(1, count(CANCEL))
    end)

    it("that nobody holds any more is cancelled", function()
      base:start "wait"
      base:start { shell = "wait", stdout = function() end }
      collectgarbage()
      collectgarbage()
      until_asked(CANCEL, 2)
      assert.equal(0, base:run("out").exit_code)
      assert.equal(2, count(CANCEL))
    end)

    it("is not started when it is closed before it was sent", function()
      local image = base:start { "wait" } -- holds a place
      local other = open { max_concurrency = 1 }
      local there = other.images:get(base.uuid)
      local first = there:start "wait"
      local before = count(SPAWN)
      local tasks = {}
      for i = 1, 3 do tasks[i] = bough.spawn(there.run, there, "out") end
      for _ = 1, 20 do bough.step(0.005) end
      for i = 1, 3 do
        tasks[i]:cancel()
        raises("cancelled", tasks[i].wait, tasks[i])
      end
      first:close()
      assert.equal(0, there:run("out").exit_code)
      assert.equal(before + 1, count(SPAWN))
      other:close()
      image:close()
    end)

    it("that is given up while its start is under way is cancelled as soon as it is known", function()
      local task = bough.spawn(base.run, base, { "wait", env = { SPAWN = "slow" } })
      until_asked(SPAWN)
      task:cancel()
      raises("cancelled", task.wait, task)
      until_asked(CANCEL)
      assert.equal(1, count(SPAWN))
      assert.equal(0, base:run("out").exit_code)
      assert.equal(1, count(CANCEL))
    end)

    it("is sent once: when the answer is lost, the error says that it may have been started", function()
      local problem = raises("transport", base.run, base, { "wait", env = { SPAWN = "lost" } })
      assert.match("may have been started", problem.message, 1, true)
      assert.match("GET /v1/operations", problem.message, 1, true)
      assert.equal(1, count(SPAWN))
      problem = raises("api", base.run, base, { "wait", env = { SPAWN = "502" } })
      assert.match("may have been started", problem.message, 1, true)
      assert.equal(502, problem.status)
      assert.equal(2, count(SPAWN))
      problem = raises("invalid", base.run, base, { "wait", env = { SPAWN = "400" } })
      assert.is_nil(problem.message:find "may have been started")
      local other = bough.open("http://127.0.0.1:1", { token = TOKEN, max_concurrency = 1 })
      problem = raises("transport", function()
        require("bough.image").new({ handle = function() return rawget(other, next(other)).driver end, running = {} },
          { uuid = base.uuid }):run { "out", timeout = 1 }
      end)
      assert.is_nil(problem.message:find "may have been started")
      other:close()
    end)

    it("L9.48 that is refused for want of room is sent again, and then goes well", function()
      assert.equal(0, base:run({ "out", env = { SPAWN = "429 425 429" } }).exit_code)
      assert.equal(4, count(SPAWN))
    end)

    it("L9.48 waits here for its turn: no more run at once than the service allows, in their order", function()
      local list, order = {}, {}
      for i = 1, 12 do
        list[i] = function()
          local image = base:run("pause 0.02;out " .. i)
          order[#order + 1] = i
          return image.exit_code
        end
      end
      bough.all(list)
      assert.equal(12, count(SPAWN))
      local sent = {}
      for i, entry in ipairs(asked(SPAWN)) do sent[i] = math.tointeger(tonumber(entry.body:match "out (%d+)")) end
      for i = 4, 12 do assert.is_true(sent[i] > 3, "the order is " .. table.concat(sent, " ")) end
      local most = server.client:request { url = server.url .. "/v1/most" }
      assert.equal(3, cjson.decode(most.body).most)
      server:handle(canned)
    end)

    it("L9.48 waits for its turn where nothing can yield, too", function()
      local seen = {}
      bough.run(function()
        table.sort({ 3, 2, 1, 4 }, function(a, b)
          if #seen < 5 then seen[#seen + 1] = base:run("out " .. #seen).stdout end
          return a < b
        end)
      end)
      assert.same({ "0\n", "1\n", "2\n", "3\n", "4\n" }, { table.unpack(seen, 1, 5) })
    end)

    it("whose stream is missing is looked at instead", function()
      local image = base:run { shell = "out x;pause 0.1;exit 2", env = { EVENTS = "none" } }
      assert.same({ 2, "x\n" }, { image.exit_code, image.stdout })
      local lines = {}
      image = base:run {
        shell = "out a;out b;cat", env = { EVENTS = "none" }, stdin = function()
          lines.given = (lines.given or 0) + 1
          return lines.given == 1 and "c\n" or nil
        end, stdout = function(line) lines[#lines + 1] = line end, text = "lines",
      }
      assert.same({ "a", "b", "c" }, { table.unpack(lines) })
      assert.equal(0, image.exit_code)
    end)
  end)

  describe("streams of a run", function()
    it("go where they are to go, as events bring them", function()
      local out, path = {}, scratch.dir() .. "/out"
      local image = base:run {
        shell = "out one;err two;out three", stdout = function(s) out[#out + 1] = s end, stderr = path,
      }
      assert.equal("one\nthree\n", table.concat(out))
      assert.equal("two\n", fixture.read_file(path))
      assert.is_nil(image.stdout)
      assert.equal(1, count(SPAWN))
    end)

    it("come whole, or the run fails: more than the service keeps is no success", function()
      local path = scratch.file "before"
      local problem = raises("resource", base.run, base, { shell = "out x;dropped stdout 99", stdout = path })
      assert.match("10 MiB", problem.message, 1, true)
      assert.equal("before", fixture.read_file(path))
      raises("resource", base.run, base, { shell = "out x;dropped stderr 99", stderr = function() end })
      assert.equal(0, base:run({ shell = "out x;dropped stderr 99", stdout = path, stderr = false }).exit_code)
      local image = base:run { shell = "out x;dropped stderr 99", stdout = path }
      assert.same({ stderr = 99 }, image.result.truncated)
    end)

    it("take input in pieces, one after another, and its end apart", function()
      local text = ("0123456789abcdef"):rep(80000) -- 1280000 bytes
      assert.equal(text, base:run({ "cat", stdin = text, truncate_output_at = 2 << 20 }).stdout)
      local all = asked(INPUT)
      assert.same({ value = "", encoding = "ascii", close = false }, body(SPAWN).stdin)
      for i, entry in ipairs(all) do
        assert.is_true(entry.body_size < (512 << 10) + 1000)
        if i > 1 then assert.is_true(entry.at >= all[i - 1].at) end
      end
      assert.is_true(#all >= 4)
      assert.is_true(body(INPUT).close)
      local other = base:run { "cat", stdin = bough.file(scratch.file "from a file\n") }
      assert.equal("from a file\n", other.stdout)
    end)

    it("that fail stop the run: a function's error comes out, and one cancel is sent", function()
      local ok, problem = pcall(base.run, base, { shell = "out x;wait", stdout = function() error("enough", 0) end })
      assert.is_false(ok)
      assert.equal("enough", problem)
      until_asked(CANCEL)
      base:run "out"
      assert.equal(1, count(CANCEL))
    end)
  end)

  describe("processes", function()
    it("share an operation whose main command ends when its input does", function()
      local instance <close> = base:boot { hostname = "box", timeout = 7.5 }
      assert.same({
        command = "read -r _ || :", shell = true, cwd = "/", hostname = "box", disposable = false, image = base.uuid,
        networking = { enabled = false }, timeout = 8, stdin = { value = "", encoding = "ascii", close = false },
        truncate_output_at = 1,
      }, body(SPAWN))
      local one, two = instance:exec "out 1;cat", instance:exec { "out", "2", stdout = true, truncate_output_at = 9 }
      assert.same({
        command = "out 1;cat", shell = true, cwd = "/", stdin = { value = "", encoding = "ascii", close = true },
        truncate_output_at = 10 << 20,
      }, body(EXEC, 1))
      assert.equal(10 << 20, body(EXEC, 2).truncate_output_at) -- its stderr is a pipe
      assert.same({ 102, 103 }, { one.pid, two.pid })
      assert.equal("1\n", one.stdout:read "a")
      assert.same({ 0, 0 }, { one:wait(), two:wait() })
      assert.equal("2\n", two.result.stdout)
      assert.equal(0, instance.live)
      instance:stop()
      local image = instance:commit { tag = "left", command = "by hand" }
      assert.same({ "left", "by hand", "commit" }, { image.tag, image.command, image.origin })
      assert.equal(image, instance:commit())
      assert.equal(1, count(SPAWN))
      assert.equal(1, count(INPUT))
      assert.equal(1, count(TAG))
      assert.equal(0, count(CANCEL))
    end)

    it("of a session end their sandbox with the last of them, and it leaves an image", function()
      local session <close> = base:session()
      local one = session:popen { shell = "cat", stdin = bough.PIPE }
      local two = session:popen "out x;exit 4"
      assert.equal(4, two:wait())
      assert.equal("executing", session.state)
      one.stdin:write("abc"):close()
      assert.equal("abc", one.stdout:read "a")
      assert.equal(0, one:wait())
      assert.equal(session.uuid, one.image.uuid)
      assert.equal(0, session.exit_code)
      assert.equal(1, count(SPAWN))
      assert.equal(2, count(EXEC))
      local inputs = asked(INPUT)
      assert.match("/subprocesses/1/stdin$", inputs[#inputs].target)
      assert.equal(0, count(CANCEL))
    end)

    it("that are given up are killed once; and their sandbox is cancelled once, with the last", function()
      local session <close> = base:session()
      do
        local one <close> = session:popen "wait"
        local two <close> = session:popen "wait"
        assert.is_nil(one:poll() or two:poll())
      end
      until_asked(CANCEL)
      assert.equal(2, count(SIGNAL))
      assert.equal("KILL", asked(SIGNAL)[1].params.signal)
      assert.equal(base.uuid, session.uuid)
      assert.equal(0, session:run("out").exit_code)
      assert.equal(1, count(CANCEL))
    end)

    it("L9.21 left in the middle of a loop are killed once", function()
      local session <close> = base:session()
      do
        local process <close> = session:popen "out a;out b;wait"
        for line in process.stdout:lines() do
          if line == "a" then break end
        end
      end
      until_asked(CANCEL)
      assert.equal(1, count(SIGNAL))
      local ok = pcall(function()
        local process <close> = session:popen "out a;wait"
        for _ in process.stdout:lines() do error "out" end
      end)
      assert.is_false(ok)
      until_asked(CANCEL, 2)
      assert.equal(2, count(SIGNAL))
    end)

    it("get signals by name, also before they are known", function()
      local instance <close> = base:boot()
      for _, name in ipairs { "TERM", "KILL", "USR1", "HUP" } do
        local process = instance:exec "wait"
        process:kill(name)
        process:wait()
        assert.equal(name, asked(SIGNAL)[count(SIGNAL)].params.signal)
      end
      local process = instance:exec "wait"
      process:kill(40)
      process:wait()
      assert.equal("RTMIN+6", asked(SIGNAL)[count(SIGNAL)].params.signal)
    end)

    it("C27 end by a code or by a signal, whichever is told", function()
      local instance <close> = base:boot()
      local process = instance:exec "wait"
      process:kill "TERM"
      assert.equal(143, process:wait())
      assert.equal(15, process.signal)
      assert.equal(0, instance:exec("out"):wait())
      assert.equal(254, instance:exec("exit 254"):wait())
    end)

    it("have time limits of their own, kept here", function()
      local instance <close> = base:boot()
      local began = system.monotime()
      local process = instance:exec { shell = "wait", timeout = 0.1 }
      assert.equal(137, process:wait())
      assert.is_true(process.timed_out)
      assert.is_true(system.monotime() - began >= 0.1)
      assert.equal(1, count(SIGNAL))
      assert.is_nil(body(EXEC).timeout)
      assert.is_false((function()
        local quick = instance:exec { "out", timeout = 60 }
        quick:wait()
        return quick.timed_out
      end)())
    end)

    it("that cannot start say it as runs do", function()
      local expected = raises("not_found", base.run, base, { "missing" })
      local instance <close> = base:boot()
      assert.equal(expected.message, raises("not_found", instance.exec, instance, { "missing" }).message)
      assert.equal(0, instance.live)
      assert.equal(expected.message, raises("not_found", base.popen, base, { "missing" }).message)
      until_asked(CANCEL) -- nothing came of its sandbox
      local session <close> = base:session()
      assert.equal(expected.message, raises("not_found", session.popen, session, { "missing" }).message)
      assert.equal(base.uuid, session.uuid)
    end)

    it("take what is written until they end; then the writer hears of it", function()
      local instance <close> = base:boot()
      local process = instance:exec { "exit 0", stdin = bough.PIPE }
      process:wait()
      raises("closed", process.stdin.write, process.stdin, "x")
      local other <close> = instance:exec { shell = "cat", stdin = bough.PIPE }
      other.stdin:write "one\n"
      assert.equal("one", other.stdout:read())
      other.stdin:write "two\n"
      other.stdin:close()
      assert.equal("two\n", other.stdout:read "a")
      assert.equal(0, other:wait())
    end)

    it("whose input was lost on its way are killed, and say why", function()
      local instance <close> = base:boot()
      local process = instance:exec { shell = "cat", stdin = bough.PIPE, env = { STDIN = "lost" } }
      process.stdin:write "x"
      raises("transport", process.wait, process)
      assert.equal(1, count(SIGNAL))
      assert.equal(1, count(INPUT))
      raises("closed", process.stdin.write, process.stdin, "x")
      assert.equal(0, instance.live)
      raises("transport", base.run, base, { "cat", stdin = bough.file(scratch.file "x"), env = { STDIN = "lost" } })
      until_asked(CANCEL)
    end)

    it("with more output than the service keeps: who reads is told, after what did come", function()
      local instance <close> = base:boot()
      local process = instance:exec "out x;dropped stdout 5"
      assert.equal("x", process.stdout:read())
      assert.match("10 MiB", raises("resource", process.stdout.read, process.stdout).message, 1, true)
      assert.equal(0, process:wait())
      local captured = instance:exec { shell = "out x;dropped stdout 5", stdout = true }
      captured:wait()
      assert.same({ stdout = 5 }, captured.result.truncated)
      local path = scratch.file "before"
      local writing = instance:exec { shell = "out x;dropped stdout 5", stdout = path }
      raises("resource", writing.wait, writing)
      assert.equal("before", fixture.read_file(path))
    end)

    it("that nobody holds any more are killed, and so is a sandbox", function()
      local instance = base:boot()
      instance:exec "wait"
      collectgarbage()
      collectgarbage()
      until_asked(SIGNAL)
      fixture.until_true("its end", function() return instance.live == 0 end)
      assert.equal(0, count(CANCEL))
      instance = nil -- luacheck: ignore
      collectgarbage()
      collectgarbage()
      until_asked(CANCEL)
      assert.equal(1, count(SIGNAL))
    end)

    it("are told when their sandbox is closed, and it is cancelled once", function()
      local instance = base:boot()
      local one, two = instance:exec "wait", instance:exec "wait"
      local waiter = bough.spawn(one.wait, one)
      bough.step(0)
      instance:close()
      instance:close()
      assert.same({ 137, 137 }, { waiter:wait(), two:wait() })
      raises("closed", instance.exec, instance, "out")
      assert.equal(1, count(CANCEL))
      assert.equal(0, count(SIGNAL))
    end)

    it("are stopped by TERM, by KILL who is left, before their sandbox ends", function()
      local instance <close> = base:boot()
      local process = instance:exec "wait"
      instance:stop()
      assert.equal(143, process:wait())
      assert.equal("stopped", instance.state)
      assert.equal("TERM", asked(SIGNAL)[1].params.signal)
      assert.equal(1, count(SIGNAL))
      local other <close> = base:boot()
      process = other:exec "wait"
      other:stop(0)
      assert.equal(137, process:wait())
    end)

    it("are looked at where there are no events", function()
      local instance <close> = base:boot { hostname = "no-events" }
      local process = instance:exec { shell = "out a;cat;exit 3", stdin = bough.PIPE }
      assert.equal("a", process.stdout:read())
      process.stdin:write "b\n":close()
      assert.equal("b\n", process.stdout:read "a")
      assert.equal(3, process:wait())
      local killed = instance:exec "wait"
      killed:kill "TERM"
      assert.equal(143, killed:wait())
      local cut = instance:exec { shell = "out x;dropped stdout 5", stdout = true }
      cut:wait()
      assert.same({ stdout = 1 }, cut.result.truncated)
      instance:stop()
      assert.is_string(instance:commit().uuid)
    end)

    it("whose end the events have not told are asked for, when their sandbox has ended", function()
      local instance <close> = base:boot()
      local process = instance:exec { shell = "out x;exit 7", env = { FORGET = "1" } }
      assert.equal("x", process.stdout:read())
      instance:stop(0)
      assert.equal(7, process:wait())
      assert.equal(1, count "GET /operations/{uuid}/subprocesses/{spid}")
    end)

    it("whose start is in doubt fail and say so; what came of it is killed", function()
      local instance <close> = base:boot()
      local problem = raises("transport", instance.exec, instance, { "wait", env = { SPAWN = "lost" } })
      assert.match("may have been started", problem.message, 1, true)
      assert.equal(1, count(EXEC))
      until_asked(SIGNAL)
      assert.match("/subprocesses/2$", asked(SIGNAL)[1].path)
      assert.equal("KILL", asked(SIGNAL)[1].params.signal)
      local process = instance:exec "out x"
      assert.equal("x\n", process.stdout:read "a")
      assert.equal(0, process:wait())
      assert.equal(1, count(SIGNAL))
    end)
  end)

  describe("refuses before anything is sent", function()
    local function refused(named, call, ...)
      local before = #server:log()
      local problem = raises("unsupported", call, ...)
      assert.match(named, tostring(problem), 1, true)
      for _ = 1, 10 do bough.step(0) end
      assert.equal(before, #server:log())
    end

    it("what a run cannot have", function()
      for _, method in ipairs { "run", "start", "popen" } do
        refused("pty", base[method], base, { "out", pty = true })
        refused("network", base[method], base, { "out", network = "host" })
        for name, value in pairs { memory = "64M", pids = 50, cpu = 1, files = 100 } do
          refused(name, base[method], base, { "out", limits = { [name] = value } })
        end
        refused("UTF-8", base[method], base, { "out", "\xff" })
        refused("UTF-8", base[method], base, { "out", env = { A = "\xff" } })
      end
      refused("cache", base.run, base, { "out", cache = true })
      refused("network", base.boot, base, { network = "host" })
      refused("memory", base.boot, base, { limits = { memory = "64M" } })
    end)

    it("what a process cannot have, and a commit of what runs", function()
      local instance <close> = base:boot()
      refused("pty", instance.exec, instance, { "out", pty = true })
      refused("stop", instance.commit, instance)
      assert.equal("running", instance.state)
      assert.equal(0, instance:exec("out"):wait())
      local own <close> = base:boot { disposable = true }
      raises("disposed", own.commit, own)
    end)

    it("what would remove, merge or write out images", function()
      refused("remove", base.remove, base)
      refused("gc", box.gc, box)
      refused("compact", box.compact, box)
      refused("export", base.export, base, scratch.dir() .. "/out.tar")
    end)
  end)

  describe("an engine that is closed", function()
    it("L9.49 cancels what runs, and whoever waits hears of it", function()
      local image = base:start "wait"
      local waiter = bough.spawn(image.wait, image)
      local instance = base:boot()
      local process = instance:exec "wait"
      local reader = bough.spawn(pcall, process.stdout.read, process.stdout)
      local ender = bough.spawn(pcall, process.wait, process)
      for _ = 1, 10 do bough.step(0) end
      box:close()
      assert.equal(2, count(CANCEL))
      local ok, problem = pcall(waiter.wait, waiter)
      assert.is_false(ok)
      assert.is_true(problem.kind == "closed" or problem.kind == "cancelled", problem.kind)
      ok, problem = ender:wait()
      assert.is_true(ok or problem.kind == "closed" or problem.kind == "cancelled", tostring(problem))
      reader:wait()
      assert.equal("closed", instance.state)
      raises("closed", base.run, base, "out")
    end)

    it("L9.49 and that waits for its turn gets closed", function()
      local other = open { max_concurrency = 1 }
      local there = other.images:get(base.uuid)
      local first = there:start "wait"
      local handle = rawget(other, next(other)).driver
      local waiting = handle:start(base.uuid, {
        argv = { "out" }, command = "out", stdout = true, stderr = true, truncate_output_at = 10, eager = true,
      })
      local waiter = bough.spawn(waiting.wait, waiting)
      for _ = 1, 20 do bough.step(0.002) end
      other:close()
      raises("closed", waiter.wait, waiter)
      assert.equal("failed", first.state)
    end)

    it("waits no more than five seconds for a service that does not cancel", function()
      base:start { "wait", env = { CANCEL = "never" } }
      local image = base:start { "wait", env = { CANCEL = "slow" } }
      local began = system.monotime()
      box:close()
      local took = system.monotime() - began
      assert.is_true(took > 0.9 and took < 7, "it took " .. took)
      raises("cancelled", image.wait, image)
    end)
  end)
end)
