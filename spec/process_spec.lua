local core = require "bough.core"
local raises = require "spec.support.raises"

local run, spawn = core.run, core.spawn
local MIB = 1024 * 1024

-- Lets everybody who is ready have `n` turns.
local function turns(n)
  for _ = 1, n or 5 do core.step(0) end
end

-- The same from inside of a task.
local function pause()
  for _ = 1, 5 do core.sleep(0) end
end

-- The same body in each of the places where a caller may be.
local contexts = {
  ["the main thread"] = function(body) return body() end,
  ["a task"] = function(body) return run(body) end,
  ["a generator inside a task"] = function(body)
    return run(function() return coroutine.wrap(body)() end)
  end,
}

-- Handles as engines give them. The command is a Lua function that gets its ends of the streams and returns
-- its code.
local handle = {}
handle.__index = handle

function handle:finish(result)
  if self.over then return end
  local code = result.exit_code or 0
  self.result = {
    exit_code = code, signal = result.signal, timed_out = result.timed_out or false, oom = false,
    ok = code == 0, elapsed_time = 1.5, user_time = 0.25, system_time = 0.125, max_rss = 4096,
    stdout = result.stdout, stderr = result.stderr, truncated = {},
    resources = { user_time = 0.25, system_time = 0.125, max_rss = 4096 },
  }
  if not self.background then
    for _, stream in pairs(self.streams) do stream:close() end
  end
  self.over = true
end

function handle:fail(problem)
  self.failure, self.over = problem, true
  for _, stream in pairs(self.streams) do stream:close() end
end

-- Runs the command, in a task or, inline, in whoever waits first.
function handle:execute()
  self.begun = true
  local good, code = pcall(self.body, self.streams, self)
  if good then
    self:finish(type(code) == "table" and code or { exit_code = code })
  elseif self.number then
    self:finish { exit_code = 128 + self.number, signal = self.number }
  else
    self:fail(code)
  end
end

function handle:wait(seconds)
  self.waits = self.waits + 1
  if self.inline and not self.idle and not self.begun and seconds ~= 0 then self:execute() end
  local due = seconds and core.now() + seconds
  while not self.over do
    if due and core.now() >= due then return nil end
    core.sleep(0.001)
  end
  if self.failure then error(self.failure, 0) end
  return self.result
end

function handle:signal(number, scope)
  self.signals[#self.signals + 1] = { number, scope }
  if number == 9 or number == 15 then self:stop(number) end
end

-- In the next turn of the loop, as a kill takes its time.
function handle:stop(number)
  self.number = self.number or number
  if self.task then self.task:cancel() end
  if not self.task or not self.begun then self:finish { exit_code = 128 + number, signal = number } end
end

function handle:close()
  self.closes = self.closes + 1
  if not self.over then self:stop(9) end
end

function handle:resize(rows, cols)
  if not self.pty then error(core.error("state", "the process has no terminal", { op = "resize" }), 0) end
  self.size = { rows, cols }
end

-- launch(body, opts) -> process, handle. opts: streams = "oe" (default), with "i" for stdin; inline, idle (it
-- never starts), background (the streams outlive the command), pty; the rest are fields of core.process.
local function launch(body, opts)
  opts = opts or {}
  local made = setmetatable({
    over = false, pid = 12, signals = {}, closes = 0, waits = 0, streams = {}, body = body,
    inline = opts.inline, idle = opts.idle, background = opts.background, pty = opts.pty,
  }, handle)
  local fields = { command = "sort -u", op = "popen" }
  for _, name in ipairs { "command", "check", "settle", "timeout" } do
    if opts[name] ~= nil then fields[name] = opts[name] end
  end
  local streams = opts.streams or "oe"
  if streams:find "i" then made.streams.stdin, fields.stdin = core.pipe "stdin" end
  if streams:find "o" then fields.stdout, made.streams.stdout = core.pipe "stdout" end
  if streams:find "e" then fields.stderr, made.streams.stderr = core.pipe "stderr" end
  if not opts.inline then made.task = spawn(function() made:execute() end) end
  return core.process(made, fields), made
end

-- A command that goes on until it is killed.
local function endless() while true do core.sleep(60) end end

-- A command that ends when `gate.open` is set, with `gate.code`.
local function gated(gate)
  return function()
    while not gate.open do core.sleep(0.001) end
    return gate.code or 0
  end
end

-- Waits until `condition` holds.
local function eventually(condition)
  core.deadline(10, function()
    while not condition() do core.sleep(0.001) end
  end)
end

-- Runs a script in a Lua of its own; returns what it wrote to either stream, and whether it went well.
local function script(text)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write(([[package.path, package.cpath = %q, %q
    local core = require "bough.core"
    ]]):format(package.path, package.cpath), text)
  file:close()
  local pipe = assert(io.popen(("%s -W %s 2>&1"):format(arg and arg[-1] or "lua5.4", path)))
  local output = pipe:read "a"
  local good = pipe:close()
  os.remove(path)
  return output, good
end

describe("bough.process", function()
  -- nothing may be left in the loop by a test
  after_each(function()
    collectgarbage()
    collectgarbage()
    assert.is_false(core.step(0), "tasks are left")
    assert.is_nil(core.timeout(), "something is left in the loop")
  end)

  for where, context in pairs(contexts) do
    describe("in " .. where, function()
      local inline = where:find "generator" ~= nil

      it("gives its code, as often as it is asked", function()
        context(function()
          local p = launch(function() return 3 end, { inline = inline })
          assert.same({ 3, 3, 3, 3 }, { p:wait(), p:wait(0), p:poll(), p.returncode })
          assert.is_false(p.ok)
        end)
      end)

      it("waits while 10 MiB come on stderr and then on stdout, all of it there to read after", function()
        context(function()
          local p <close> = launch(function(io)
            io.stderr:write(("e"):rep(10 * MIB)):flush()
            io.stdout:write(("o"):rep(10 * MIB)):flush()
            return 0
          end, { inline = inline })
          assert.equal(0, p:wait())
          assert.equal(("o"):rep(10 * MIB), p.stdout:read "a")
          assert.equal(("e"):rep(10 * MIB), p.stderr:read "a")
        end)
      end)

      it("collects both outputs of 10 MiB in communicate", function()
        context(function()
          local p <close> = launch(function(io)
            io.stderr:write(("e"):rep(10 * MIB)):flush()
            io.stdout:write(("o"):rep(10 * MIB)):flush()
            return 4
          end, { inline = inline })
          local out, err = p:communicate()
          assert.equal(("o"):rep(10 * MIB), out)
          assert.equal(("e"):rep(10 * MIB), err)
          assert.equal(4, p.returncode)
        end)
      end)

      it("raises timeout and leaves the process alone", function()
        context(function()
          local p <close>, h = launch(endless, { inline = inline, idle = inline })
          local problem = raises("timeout", p.wait, p, 0.02)
          assert.equal("wait: the process is still running after 0.02 s: it goes on; kill() ends it",
            tostring(problem))
          raises("timeout", p.communicate, p, nil, 0.02)
          raises("timeout", p.wait, p, 0)
          assert.same({ 0, 0 }, { h.closes, #h.signals })
          assert.is_nil(p:poll())
        end)
      end)

      it("honours a deadline of the caller", function()
        context(function()
          local p <close>, h = launch(endless, { inline = inline, idle = inline })
          local problem = raises("timeout", core.deadline, 0.02, function() p:wait() end)
          assert.equal("deadline", problem.op)
          problem = raises("timeout", core.deadline, 0.02, function() p:communicate() end)
          assert.equal("deadline", problem.op)
          problem = raises("timeout", core.deadline, 0.02, function() p:close() end)
          assert.equal("deadline", problem.op)
          assert.same({ 0, 0 }, { h.closes, #h.signals })
        end)
      end)

      it("gives close's triple as io.popen does", function()
        context(function()
          local p = launch(function() return 0 end, { inline = inline })
          assert.same({ true, "exit", 0 }, { p:close() })
          assert.same({ true, "exit", 0 }, { p:close() })
          p = launch(function() return 2 end, { inline = inline, check = true })
          assert.same({ n = 3, nil, "exit", 2 }, table.pack(p:close()))
          p = launch(function() return { exit_code = 143, signal = 15 } end, { inline = inline })
          assert.same({ n = 3, nil, "signal", 15 }, table.pack(p:close()))
        end)
      end)

      it("kills what is alive when its variable is closed, and waits for that", function()
        context(function()
          local seen
          do
            local p <close>, h = launch(endless, { inline = inline, idle = inline })
            seen = h
            assert.is_nil(p.returncode)
          end
          assert.is_true(seen.over)
          assert.equal(1, seen.closes)
          assert.equal(9, seen.result.signal)
        end)
      end)

      it("settles after the end, once", function()
        context(function()
          local count = 0
          local p = launch(function() return 5 end, {
            inline = inline,
            settle = function() core.sleep(0.001) count = count + 1 return "the image" end,
          })
          assert.is_nil(p.image)
          assert.equal(5, p:wait())
          assert.equal("the image", p.image)
          p:wait()
          p:close()
          p:communicate()
          assert.equal(1, count)
        end)
      end)

      it("raises what a failing handle raises, each time", function()
        context(function()
          local p = launch(function() error(core.error("not_found", "no such program", { op = "popen" }), 0) end,
            { inline = inline })
          for _, name in ipairs { "wait", "close", "communicate", "wait", "poll" } do
            assert.equal("popen: no such program", tostring(raises("not_found", p[name], p)))
          end
          assert.is_nil(p.returncode)
          assert.equal('process 12 "sort -u" failed', tostring(p))
          raises("not_found", function() return p.result end)
          assert.is_true(p:kill())
        end)
      end)
    end)
  end

  describe("fields", function()
    it("tell nothing before the end but what is known", function()
      local gate = {}
      local p <close> = launch(gated(gate), { streams = "io" })
      assert.same({ 12, "sort -u" }, { p.pid, p.command })
      assert.is_not_nil(p.stdin)
      assert.is_not_nil(p.stdout)
      for _, name in ipairs { "stderr", "returncode", "signal", "timed_out", "ok", "resources", "image" } do
        assert.is_nil(p[name], name)
      end
      assert.matches("wait for it", raises("state", function() return p.result end).message)
      assert.is_nil(p.no_such_thing)
      assert.is_nil(p[1])
      gate.open = true
      p:wait()
      assert.same({ 0, true, false }, { p.returncode, p.ok, p.timed_out })
      assert.is_nil(p.signal)
      assert.same({ user_time = 0.25, system_time = 0.125, max_rss = 4096, elapsed_time = 1.5 }, p.resources)
    end)

    it("know the end as soon as the handle does", function()
      local p, h = launch(function() return { exit_code = 137, signal = 9, timed_out = true } end)
      eventually(function() return h.over end)
      assert.same({ 137, 9, true, false }, { p.returncode, p.signal, p.timed_out, p.ok })
    end)

    it("give a fresh result each time", function()
      local p = launch(function() return 0 end)
      p:wait()
      local one, two = p.result, p.result
      assert.same(one, two)
      assert.not_equal(one, two)
      one.exit_code, one.resources.user_time = 9, 9
      assert.same({ 0, 0.25 }, { p.result.exit_code, p.result.resources.user_time })
    end)

    it("cannot be set", function()
      local p = launch(function() return 0 end)
      p:wait()
      assert.matches("process.stdin: fields of a process cannot be set",
        raises("invalid", function() p.stdin = 1 end).message)
    end)

    it("are named in errors about other selves", function()
      local p = launch(function() return 0 end)
      p:wait()
      for _, name in ipairs { "wait", "poll", "communicate", "kill", "terminate", "send_signal", "resize",
        "attach", "close" } do
        assert.matches("process:" .. name, raises("invalid", p[name], {}).message)
      end
    end)
  end)

  describe("core.process", function()
    it("checks what it is given", function()
      raises("invalid", core.process)
      raises("invalid", core.process, {}, 1)
      local reader, writer = core.pipe()
      assert.matches("stdin must be a writer", raises("invalid", core.process, {}, { stdin = reader }).message)
      assert.matches("stdout must be a reader", raises("invalid", core.process, {}, { stdout = writer }).message)
      reader:close()
      writer:close()
    end)
  end)

  describe("poll", function()
    it("sees the end though nobody waits", function()
      local p, h = launch(function() core.sleep(0.005) return 7 end)
      assert.is_nil(p:poll())
      local waits = h.waits
      eventually(function() return p:poll() end)
      assert.equal(7, p:poll())
      assert.equal(waits + 1, h.waits)
    end)

    it("neither settles nor checks", function()
      local p, h = launch(function() return 7 end, { check = true, settle = function() error "settled" end })
      eventually(function() return h.over end)
      assert.equal(7, p:poll())
    end)
  end)

  describe("wait", function()
    it("refuses what is no time", function()
      local p <close> = launch(endless)
      raises("invalid", p.wait, p, -1)
      raises("invalid", p.wait, p, "soon")
      raises("invalid", p.communicate, p, nil, {})
      assert.is_nil(p:poll())
    end)

    it("takes a time without end", function()
      local p = launch(function() return 1 end)
      assert.equal(1, p:wait(math.huge))
    end)

    it("works for eight at once, some of whom give up", function()
      local gate, settled = { code = 6 }, 0
      local p = launch(gated(gate), { settle = function() core.sleep(0.005) settled = settled + 1 end })
      run(function()
        local tasks = {}
        for i = 1, 8 do
          tasks[i] = spawn(function() return p:wait(i == 8 and 0.002 or nil) end)
        end
        raises("timeout", tasks[8].wait, tasks[8])
        tasks[1]:cancel()
        raises("cancelled", tasks[1].wait, tasks[1])
        gate.open = true
        for i = 2, 7 do assert.equal(6, tasks[i]:wait()) end
      end)
      assert.equal(1, settled)
    end)

    it("goes on in others when the one who settles is cancelled", function()
      local began, ended = 0, 0
      local p = launch(function() return 0 end, {
        settle = function()
          began = began + 1
          core.sleep(began == 1 and 60 or 0.001)
          ended = ended + 1
          return "moved"
        end,
      })
      run(function()
        local first = spawn(function() p:wait() end)
        eventually(function() return began == 1 end)
        local second = spawn(function() return p:wait() end)
        local third = spawn(function() return p:close() end)
        core.sleep(0)
        first:cancel()
        raises("cancelled", first.wait, first)
        assert.equal(0, second:wait())
        assert.same({ true, "exit", 0 }, { third:wait() })
      end)
      assert.same({ 2, 1, "moved" }, { began, ended, p.image })
    end)

    it("raises what settling raised, each time, and settles no more", function()
      local count = 0
      local p = launch(function() return 0 end, {
        settle = function() count = count + 1 error(core.error("resource", "disk full", { op = "commit" }), 0) end,
      })
      for _, name in ipairs { "wait", "wait", "close", "communicate" } do
        assert.equal("commit: disk full", tostring(raises("resource", p[name], p)))
      end
      assert.equal(1, count)
      assert.equal(0, p.returncode)
      assert.equal('process 12 "sort -u" exit 0', tostring(p))
    end)

    it("refuses, in a generator, to wait for one who settles and cannot go on", function()
      local p = launch(function() return 0 end, { settle = function() core.sleep(0.02) return "moved" end })
      run(function()
        local first = spawn(function() p:wait() end)
        eventually(function() return p.returncode end)
        pause()
        assert.matches("coroutine", raises("state", coroutine.wrap(function() p:wait() end)).message)
        first:wait()
      end)
      assert.equal("moved", p.image)
    end)

    it("kills nothing when it is cancelled", function()
      local gate = {}
      local p, h = launch(gated(gate))
      run(function()
        for _, name in ipairs { "wait", "communicate", "close" } do
          local task = spawn(function() p[name](p) end)
          pause()
          task:cancel()
          raises("cancelled", task.wait, task)
        end
      end)
      assert.same({ 0, 0 }, { h.closes, #h.signals })
      gate.open = true
      assert.equal(0, p:wait())
    end)

    it("puts output aside only while somebody waits", function()
      local p <close>, h = launch(function(io)
        io.stdout:write(("x"):rep(16 * MIB)):flush()
        return 0
      end)
      local stdout = h.streams.stdout
      turns(50)
      local before = stdout.written
      assert.is_true(before <= MIB, "back-pressure before anybody waits")
      run(function()
        local task = spawn(function() p:wait() end)
        eventually(function() return stdout.written > before + 2 * MIB or h.over end)
        task:cancel()
        raises("cancelled", task.wait, task)
      end)
      raises("timeout", p.wait, p, 0)
      turns(5)
      local between = stdout.written
      turns(50)
      -- what fits into the pipe, and what one turn of the loop had begun
      assert.is_true(stdout.written - between <= 2 * MIB, "back-pressure after the wait was cut short")
      assert.is_false(h.over)
      assert.equal(0, p:wait())
      assert.equal(16 * MIB, #p.stdout:read "a")
    end)

    it("does not wait for background children that hold the streams", function()
      local p, h = launch(function(io) io.stdout:write "done\n" return 0 end, { background = true })
      assert.equal(0, p:wait())
      assert.equal("done", p.stdout:read "l")
      h.streams.stdout:write "late\n"
      h.streams.stdout:close()
      assert.equal("late\n", p.stdout:read "a") -- a read goes on to the true end
      h.streams.stderr:close()
    end)
  end)

  describe("check", function()
    local function failing(result, opts)
      opts = opts or {}
      opts.check = true
      return launch(function(io)
        if io.stderr then io.stderr:write "first\n  it broke\n\n" end
        if io.stdout then io.stdout:write "so far" end
        return result
      end, opts)
    end

    it("makes wait raise exit, the same each time, with the result", function()
      local p = failing(3, { settle = function() return "the image" end })
      for _ = 1, 2 do
        local problem = raises("exit", p.wait, p)
        assert.equal('popen "sort -u": exit code 3 (last line of stderr: "it broke")', tostring(problem))
        assert.same({ 3, "sort -u", "the image" }, { problem.result.exit_code, problem.command, problem.image })
        assert.same({ "so far", "first\n  it broke\n\n" }, { problem.result.stdout, problem.result.stderr })
      end
      assert.equal("so far", p.stdout:read "a") -- and is still there to be read
      assert.same({ 3, 3 }, { p:poll(), p.returncode })
    end)

    it("makes communicate raise it with both outputs", function()
      local p = failing(3)
      for _ = 1, 2 do
        local problem = raises("exit", p.communicate, p)
        assert.equal('popen "sort -u": exit code 3 (last line of stderr: "it broke")', tostring(problem))
        assert.same({ "so far", "first\n  it broke\n\n" }, { problem.result.stdout, problem.result.stderr })
      end
      assert.equal("so far", raises("exit", p.wait, p).result.stdout)
    end)

    it("tells signals, memory and time limits", function()
      local p = failing({ exit_code = 139, signal = 11 }, { streams = "" })
      assert.equal('popen "sort -u": exit code 139, killed by signal 11', tostring(raises("exit", p.wait, p)))
      p = failing({ exit_code = 137, signal = 9, timed_out = true }, { streams = "", timeout = 2.5 })
      local problem = raises("timeout", p.wait, p)
      assert.equal('popen "sort -u": stopped at its time limit of 2.5 s', tostring(problem))
      assert.is_true(problem.result.timed_out)
      p = failing({ exit_code = 137, timed_out = true }, { streams = "" })
      assert.equal('popen "sort -u": stopped at its time limit', tostring(raises("timeout", p.wait, p)))
    end)

    it("has captured output in its error", function()
      local p = failing({ exit_code = 1, stdout = "out", stderr = "err\n" }, { streams = "" })
      local problem = raises("exit", p.wait, p)
      assert.same({ "out", "err\n" }, { problem.result.stdout, problem.result.stderr })
      assert.matches('%(last line of stderr: "err"%)', problem.message)
    end)

    it("lets what went well be", function()
      assert.equal(0, failing(0):wait())
    end)
  end)

  describe("communicate", function()
    -- cat
    local function echo(io)
      while true do
        local chunk = io.stdin:read "c"
        if not chunk then return 0 end
        io.stdout:write(chunk)
        io.stderr:write(("."):rep(#chunk))
      end
    end

    it("sends and reads at once, whatever the size", function()
      for _, context in ipairs { contexts["the main thread"], contexts["a task"] } do
        context(function()
          local p <close> = launch(echo, { streams = "ioe" })
          local input = ("0123456789abcdef"):rep(10 * MIB // 16)
          local out, err = p:communicate(input)
          assert.is_true(out == input)
          assert.equal(#input, #err)
          assert.equal(0, p.returncode)
        end)
      end
    end)

    it("closes stdin at once without an input", function()
      local p = launch(echo, { streams = "ioe" })
      assert.same({ "", "" }, { p:communicate() })
      assert.is_true(p.stdin.closed)
      p = launch(echo, { streams = "ioe" })
      assert.same({ "", "" }, { p:communicate "" })
    end)

    it("gives nil for what is no pipe, and what was captured", function()
      assert.same({ n = 2 }, table.pack(launch(function() return 0 end, { streams = "" }):communicate()))
      local p = launch(function() return { stdout = "captured" } end, { streams = "e" })
      assert.same({ "captured", "" }, { p:communicate() })
    end)

    it("gives the same again, and what was read before only to whom it was given", function()
      local p = launch(function(io) io.stdout:write "one\ntwo\n" return 0 end)
      assert.equal("one", p.stdout:read "l")
      assert.same({ "two\n", "" }, { p:communicate() })
      assert.same({ "two\n", "" }, { p:communicate() })
      assert.same({ "two\n", "" }, { p.result.stdout, p.result.stderr })
      assert.equal("", p.stdout:read "a")
    end)

    it("collects what a process that is over has left", function()
      local p = launch(function(io) io.stdout:write "left" return 0 end, { streams = "io" })
      p:wait()
      assert.equal("left", (p:communicate "nobody reads this"))
    end)

    it("goes on after a timeout: nothing is lost, nothing sent twice", function()
      local gate = {}
      local p <close> = launch(function(io)
        io.stdout:write "hello "
        while not gate.open do core.sleep(0.001) end
        return echo(io)
      end, { streams = "ioe" })
      local input = ("x"):rep(3 * MIB)
      local problem = raises("timeout", p.communicate, p, input, 0.02)
      assert.matches("^communicate: the process is still running", tostring(problem))
      raises("timeout", p.communicate, p, input, 0)
      raises("timeout", p.communicate, p, nil, 0.005)
      assert.matches("another input", raises("state", p.communicate, p, "other").message)
      gate.open = true
      local out = p:communicate()
      assert.equal(6 + #input, #out)
      assert.is_true(out == "hello " .. input)
    end)

    it("goes on after it was cancelled", function()
      local gate = {}
      local p <close> = launch(function(io)
        while not gate.open do core.sleep(0.001) end
        return echo(io)
      end, { streams = "ioe" })
      local input = ("x"):rep(3 * MIB)
      run(function()
        local task = spawn(function() p:communicate(input) end)
        pause()
        raises("busy", p.communicate, p)
        task:cancel()
        raises("cancelled", task.wait, task)
      end)
      gate.open = true
      assert.is_true(p:communicate() == input)
    end)

    it("does not mind a command that reads nothing", function()
      local p = launch(function(io) io.stdin:close() io.stdout:write "enough" return 0 end, { streams = "io" })
      assert.equal("enough", (p:communicate(("x"):rep(MIB))))
    end)

    it("ends with the process, not with children that hold its streams", function()
      local p, h = launch(function(io)
        io.stdout:write(("x"):rep(50000))
        core.sleep(0.005)
        return 0
      end, { streams = "ioe", background = true })
      local out, err = p:communicate(("x"):rep(3 * MIB))
      assert.same({ 50000, "" }, { #out, err })
      for _, stream in pairs(h.streams) do stream:close() end
    end)

    it("waits for its turn behind another writer", function()
      local p <close> = launch(echo, { streams = "ioe" })
      run(function()
        spawn(function() p.stdin:write(("a"):rep(2 * MIB)) end)
        core.sleep(0)
        local out = p:communicate(("b"):rep(2 * MIB))
        assert.is_true(out == ("a"):rep(2 * MIB) .. ("b"):rep(2 * MIB))
      end)
    end)

    it("refuses input that has nowhere to go", function()
      local p <close> = launch(endless)
      assert.matches("stdin = bough.PIPE", raises("invalid", p.communicate, p, "x").message)
      raises("invalid", p.communicate, p, {})
      raises("invalid", p.communicate, p, print)
      local q <close> = launch(endless, { streams = "i" })
      q.stdin:close()
      assert.matches("stdin is closed", raises("closed", q.communicate, q, "x").message)
      raises("timeout", q.communicate, q, nil, 0)
    end)

    it("leaves out a stream that was closed", function()
      local p = launch(function(io) io.stderr:write "err" return 0 end)
      p.stdout:close()
      assert.same({ n = 2, nil, "err" }, table.pack(p:communicate()))
    end)
  end)

  describe("signals", function()
    it("go to the group, by name or number", function()
      local p <close>, h = launch(endless)
      local cases = {
        { "HUP", 1 }, { "SIGHUP", 1 }, { "sighup", 1 }, { "usr1", 10 }, { "SigUsr2", 12 }, { 18, 18 },
        { 18.0, 18 }, { "winch", 28 }, { "SIGPOLL", 29 }, { "io", 29 }, { "cld", 17 }, { "iot", 6 },
        { "unused", 31 }, { "stkflt", 16 }, { "rtmax", 64 }, { "SIGRTMAX-1", 63 }, { 64, 64 },
      }
      for _, case in ipairs(cases) do
        assert.is_true(p:send_signal(case[1]), tostring(case[1]))
        assert.same({ case[2], "group" }, h.signals[#h.signals], tostring(case[1]))
      end
      p:send_signal "RTMIN"
      local low = h.signals[#h.signals][1]
      p:send_signal "rtmin+3"
      assert.equal(low + 3, h.signals[#h.signals][1])
    end)

    it("default to KILL and TERM", function()
      local p, h = launch(endless)
      assert.is_true(p:kill())
      assert.equal(137, p:wait())
      assert.same({ { 9, "group" } }, h.signals)
      p, h = launch(endless)
      assert.is_true(p:terminate())
      assert.same({ nil, "signal", 15 }, { p:close() })
      assert.same({ { 15, "group" } }, h.signals)
      p, h = launch(endless)
      p:kill "TERM"
      p:wait()
      assert.same({ { 15, "group" } }, h.signals)
    end)

    it("are nothing to a process that is over", function()
      local p, h = launch(function() return 0 end)
      eventually(function() return h.over end)
      assert.same({ true, true, true, true }, { p:kill(), p:terminate(), p:send_signal(1), p:kill "USR1" })
      assert.same({}, h.signals)
    end)

    it("are named when they are unknown", function()
      local p <close>, h = launch(endless)
      local hints = {
        TREM = "TERM", SIGKIL = "KILL", SIGUSR3 = "USR1", RTMIN3 = "RTMIN+n", ["RTMIN+99"] = "RTMIN+n",
        ["RTMAX+1"] = "RTMAX-n", [""] = "IO", SIG = "IO", [("x"):rep(200)] = "", ["TERM\0"] = "TERM", ["9"] = "",
      }
      for given, meant in pairs(hints) do
        local problem = raises("invalid", p.kill, p, given)
        assert.matches("did you mean", problem.message)
        if meant ~= "" then
          assert.is_truthy(problem.message:find('"' .. meant .. '"', 1, true), problem.message)
        end
      end
      for _, given in ipairs { 0, -1, 65, 1.5, math.huge } do
        assert.matches("1 to 64", raises("invalid", p.kill, p, given).message)
      end
      raises("invalid", p.kill, p, {})
      raises("invalid", p.send_signal, p)
      assert.same({}, h.signals)
    end)
  end)

  describe("resize", function()
    it("asks the handle", function()
      local p <close>, h = launch(endless, { pty = true })
      p:resize(50, 132)
      assert.same({ 50, 132 }, h.size)
      p:resize(1.0, 65535)
      assert.same({ 1, 65535 }, h.size)
      for _, size in ipairs { { 0, 80 }, { 24, 65536 }, { 24 }, { "24", 80 }, { 24.5, 80 }, { -1, 80 } } do
        raises("invalid", p.resize, p, size[1], size[2])
      end
      assert.matches("cols", raises("invalid", p.resize, p, 24).message)
    end)

    it("passes on that there is no terminal", function()
      local p <close> = launch(endless)
      assert.equal("resize: the process has no terminal", tostring(raises("state", p.resize, p, 24, 80)))
    end)
  end)

  describe("close", function()
    it("closes the streams first: a command that only reads comes to its end", function()
      local p, h = launch(function(io)
        local text = io.stdin:read "a"
        return #text
      end, { streams = "ioe" })
      p.stdin:write "12345"
      assert.same({ n = 3, nil, "exit", 5 }, table.pack(p:close()))
      assert.same({ true, true, true }, { p.stdin.closed, p.stdout.closed, p.stderr.closed })
      assert.equal(0, h.closes)
    end)
  end)

  describe("__close", function()
    it("does not hide the error that is on its way", function()
      local seen
      local good, problem = pcall(function()
        local _ <close>, h = launch(endless, { settle = function() error "settled" end })
        seen = h
        error("mine", 0)
      end)
      assert.same({ false, "mine" }, { good, problem })
      assert.is_true(seen.over)
    end)

    it("never raises what the process did", function()
      do
        local function settle() error "settled" end
        local p <close> = launch(function() return 3 end, { check = true, settle = settle })
        eventually(function() return p.returncode end)
      end
      do
        local p <close> = launch(function() error(core.error("io", "lost", {}), 0) end)
        eventually(function() return tostring(p):find "failed" end)
      end
      do
        local p <close> = launch(endless)
        p.stdout:close()
        p:kill()
      end
    end)

    it("closes what is left of the streams", function()
      local streams
      do
        local p <close>, h = launch(function() return 0 end, { streams = "ioe", background = true })
        eventually(function() return h.over end)
        streams = { p.stdin, p.stdout, p.stderr }
        for _, stream in pairs(h.streams) do stream:close() end
      end
      for _, stream in ipairs(streams) do assert.is_true(stream.closed) end
    end)

    it("kills and waits when its task is cancelled", function()
      local seen
      run(function()
        local task = spawn(function()
          local p <close>, h = launch(endless)
          seen = h
          p:wait()
        end)
        eventually(function() return seen end)
        task:cancel()
        raises("cancelled", task.wait, task)
      end)
      assert.is_true(seen.over)
      assert.equal(1, seen.closes)
    end)

    it("does not lose a cancellation that comes while it waits", function()
      local seen, after
      run(function()
        local gate = {}
        local task = spawn(function()
          do
            local _ <close>, h = launch(function()
              local _ <close> = setmetatable({}, { __close = function()
                while not gate.open do core.sleep(0.001) end
              end })
              endless()
            end)
            pause() -- it has begun
            seen = h
          end
          after = true
        end)
        eventually(function() return seen and seen.closes == 1 end)
        task:cancel()
        pause()
        assert.equal("waiting", task.status)
        gate.open = true
        raises("cancelled", task.wait, task)
      end)
      assert.is_true(seen.over)
      assert.is_nil(after)
    end)

    it("does not wait in a finaliser", function()
      local seen
      local function leave()
        local _ <close>, h = launch(endless)
        seen = h
      end
      do setmetatable({}, { __gc = leave }) end
      collectgarbage()
      collectgarbage()
      assert.equal(1, seen.closes)
      eventually(function() return seen.over end)
    end)
  end)

  describe("__gc", function()
    it("kills what is alive, without waiting", function()
      local seen
      do
        local _, h = launch(endless)
        seen = h
      end
      collectgarbage()
      collectgarbage()
      assert.equal(1, seen.closes)
      eventually(function() return seen.over end)
    end)

    it("leaves alone what is over, and streams that are in use", function()
      local stdout, seen
      do
        local p, h = launch(function(io) io.stdout:write "still here" return 0 end)
        stdout, seen = p.stdout, h
        p:wait()
      end
      collectgarbage()
      collectgarbage()
      assert.equal(0, seen.closes)
      assert.equal("still here", stdout:read "a")
    end)

    it("survives handles that raise or wait", function()
      for _, close in ipairs { function() error "no" end, function() core.sleep(1) end } do
        do core.process({ over = false, close = close }, { command = "x" }) end
        do core.process({}, { command = "x" }) end
        collectgarbage()
        collectgarbage()
      end
    end)

    it("is safe when the state closes, whatever is under way", function()
      local output, good = script [[
        local closes = 0
        local function live()
          local stdin, out = core.pipe()
          local reader, writer = core.pipe()
          local handle = setmetatable({ over = false, keep = { stdin, writer } }, { __gc = function() end })
          function handle.wait() while true do core.sleep(60) end end
          function handle.close() closes = closes + 1 if closes == 3 then print "closed" end end
          return core.process(handle, { stdin = out, stdout = reader, command = "x",
            settle = function() core.sleep(60) end })
        end
        kept = live()
        local cycle = { live() }
        cycle[2] = cycle
        local waiting = live()
        core.spawn(function() waiting:wait() end)
        local talking = live()
        core.spawn(function() talking:communicate(("x"):rep(1 << 22)) end)
        local settling = live()
        core.spawn(function() settling:wait() end)
        core.step(0)
        core.step(0)
      ]]
      assert.equal("closed\n", output)
      assert.is_true(good)
    end)
  end)

  describe("tostring", function()
    it("tells the number, the command and how it is", function()
      local p = launch(endless)
      assert.equal('process 12 "sort -u" running', tostring(p))
      p:kill()
      p:wait()
      assert.equal('process 12 "sort -u" signal 9', tostring(p))
      p = launch(function() return 0 end, { command = "printf 'a\nb' \"x\"" })
      p:wait()
      assert.equal([[process 12 "printf 'a\nb' \"x\"" exit 0]], tostring(p))
      p = launch(function() return { exit_code = 137, signal = 9, timed_out = true } end,
        { command = ("é"):rep(100) })
      p:wait()
      assert.equal('process 12 "' .. ("é"):rep(28) .. '..." signal 9, timed out', tostring(p))
    end)

    it("does without a number", function()
      local p, h = launch(endless)
      h.pid = nil
      assert.equal('process "sort -u" running', tostring(p))
      p:kill()
      p:wait()
    end)
  end)
end)
