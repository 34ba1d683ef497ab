local core = require "bough.core"
local task = require "bough.task"
local raises = require "spec.support.raises"

local run, spawn, sleep, deadline = core.run, core.spawn, core.sleep, core.deadline

-- A lock that its holder, who is not a task, never gives back: whoever wants it waits for ever.
local function never()
  local queue = core.queue()
  queue:acquire()
  return queue
end

-- Lets everybody who is ready have `n` turns.
local function turns(n)
  for _ = 1, n or 1 do core.step(0) end
end

local function monotonic()
  local file <close> = assert(io.open "/proc/uptime")
  return file:read "n"
end

-- Runs a script in a Lua of its own; returns what it wrote to either stream, and whether it went well.
local function script(text)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write(([[package.path, package.cpath = %q, %q
    local core, task = require "bough.core", require "bough.task"
    ]]):format(package.path, package.cpath), text)
  file:close()
  local pipe = assert(io.popen(("%s %s 2>&1"):format(arg and arg[-1] or "lua5.4", path)))
  local output = pipe:read "a"
  local good = pipe:close()
  os.remove(path)
  return output, good
end

-- The same body in each of the places where a caller may be. Each returns the body's results or
-- raises its error.
local contexts = {
  ["the main thread"] = function(body) return body() end,
  ["a task"] = function(body) return run(body) end,
  ["a foreign coroutine"] = function(body) return coroutine.wrap(body)() end,
  ["a generator inside a task"] = function(body)
    return run(function() return coroutine.wrap(body)() end)
  end,
  ["a comparator inside a task"] = function(body)
    return run(function()
      local result
      table.sort({ 1, 2 }, function(a, b)
        result = result or table.pack(body())
        return a < b
      end)
      return table.unpack(result, 1, result.n)
    end)
  end,
  ["a gsub callback inside a task"] = function(body)
    return run(function()
      local result;
      ("x"):gsub("x", function() result = table.pack(body()) end)
      return table.unpack(result, 1, result.n)
    end)
  end,
  ["a __tostring inside a task"] = function(body)
    return run(function()
      local result
      tostring(setmetatable({}, { __tostring = function() result = table.pack(body()) return "" end }))
      return table.unpack(result, 1, result.n)
    end)
  end,
  ["a closer run by coroutine.close inside a task"] = function(body)
    return run(function()
      local result
      local co = coroutine.create(function()
        local _ <close> = setmetatable({}, { __close = function() result = table.pack(body()) end })
        coroutine.yield()
      end)
      coroutine.resume(co)
      local good, problem = coroutine.close(co)
      if not good then error(problem, 0) end
      return table.unpack(result, 1, result.n)
    end)
  end,
  ["require inside a task"] = function(body)
    return run(function()
      local result
      package.preload["bough.spec.loaded"] = function() result = table.pack(body()) return true end
      package.loaded["bough.spec.loaded"] = nil
      local good, problem = pcall(require, "bough.spec.loaded")
      package.loaded["bough.spec.loaded"], package.preload["bough.spec.loaded"] = nil, nil
      if not good then error(problem, 0) end
      return table.unpack(result, 1, result.n)
    end)
  end,
}

local private = {
  ["a generator inside a task"] = true,
  ["a comparator inside a task"] = true,
  ["a gsub callback inside a task"] = true,
  ["a __tostring inside a task"] = true,
  ["a closer run by coroutine.close inside a task"] = true,
  ["require inside a task"] = true,
}

describe("bough.core", function()
  -- nothing may be left in the loop by a test
  after_each(function()
    collectgarbage()
    assert.is_false(core.step(0), "tasks are left")
    assert.is_nil(core.timeout(), "something is left in the loop")
  end)

  describe("error values", function()
    it("carry their fields and read as one line", function()
      local problem = core.error("io", "disk on fire", { op = "run", errno = 5, code = "EIO", cause = "x" })
      assert.same({ "io", "disk on fire", "run", 5, "EIO", "x" },
        { problem.kind, problem.message, problem.op, problem.errno, problem.code, problem.cause })
      assert.equal("run: disk on fire", tostring(problem))
      assert.equal("disk on fire", tostring(core.error("io", "disk on fire")))
    end)

    it("are told from other values", function()
      assert.is_true(core.is_error(core.error("io", "x")))
      for _, value in ipairs { "io", 1, {}, setmetatable({ kind = "io" }, {}), io.stdout } do
        assert.is_false(core.is_error(value))
      end
      assert.is_false(core.is_error(nil))
      assert.is_false(core.is_error())
    end)

    it("have one of the known kinds", function()
      for _, kind in ipairs(core.kinds) do assert.equal(kind, core.error(kind, "x").kind) end
      assert.matches("unknown kind 'nonsense'", raises("invalid", core.error, "nonsense", "x").message)
      raises("invalid", core.error, nil, "x")
      raises("invalid", core.error, "io", {})
      raises("invalid", core.error, "io", "x", 1)
    end)

    it("cannot have their kind changed by a field", function()
      assert.equal("io", core.error("io", "x", { kind = "busy", message = "y" }).kind)
    end)

    it("read as something when their fields are gone", function()
      local problem = core.error("io", "x")
      problem.message = nil
      assert.equal("io", tostring(problem))
      problem.kind = nil
      assert.equal("unknown error", tostring(problem))
    end)
  end)

  describe("constants", function()
    it("are distinct, have a name, and stay what they are", function()
      assert.equal("bough.PIPE", tostring(core.PIPE))
      assert.equal("bough.INHERIT", tostring(core.INHERIT))
      assert.equal("bough.STDOUT", tostring(core.STDOUT))
      assert.not_equal(core.PIPE, core.STDOUT)
      assert.has_error(function() core.PIPE.x = 1 end)
    end)

    it("are the same when the module is loaded again", function()
      local loaded = package.loaded["bough.core"]
      package.loaded["bough.core"] = nil
      local again = require "bough.core"
      package.loaded["bough.core"] = loaded
      assert.equal(core.PIPE, again.PIPE)
    end)
  end)

  describe("run", function()
    it("passes arguments and returns results, nils included", function()
      local result = table.pack(run(function(...) return select("#", ...), ... end, 1, nil, "x", nil))
      assert.same({ 4, 1, nil, "x", nil, n = 5 }, result)
      assert.equal(0, select("#", run(function() end)))
      assert.is_nil((run(function() return nil end)))
    end)

    it("returns many results", function()
      local result = table.pack(run(function() return table.unpack({}, 1, 5000) end))
      assert.equal(5000, result.n)
    end)

    it("takes anything callable and refuses the rest", function()
      assert.equal(3, run(setmetatable({}, { __call = function(_, a) return a + 1 end }), 2))
      for _, value in ipairs { 1, "x", {}, true } do raises("invalid", run, value) end
      raises("invalid", run)
      raises("invalid", spawn, nil)
    end)

    it("waits inside a task", function()
      assert.equal(5, run(function() return run(function() sleep(0) return 5 end) end))
    end)

    it("raises the error of the task, the same value", function()
      local problem = {}
      local good, got = pcall(run, function() error(problem) end)
      assert.is_false(good)
      assert.equal(problem, got)
      good, got = pcall(run, function() error(nil) end)
      assert.is_false(good)
      assert.is_nil(got)
    end)

    it("ends its task when a deadline ends it", function()
      local closed
      local lock = never()
      raises("timeout", deadline, 0.01, run, function()
        local _ <close> = setmetatable({}, { __close = function() closed = true end })
        lock:acquire()
      end)
      assert.is_true(closed)
    end)
  end)

  describe("spawn", function()
    it("starts nothing by itself", function()
      local ran = false
      local t = spawn(function() ran = true end)
      assert.is_false(ran)
      assert.equal("ready", t.status)
      t:wait()
      assert.is_true(ran)
    end)

    it("runs tasks in the order in which they were made", function()
      local order, tasks = {}, {}
      for i = 1, 5 do tasks[i] = spawn(function() order[#order + 1] = i end) end
      for _, t in ipairs(tasks) do t:wait() end
      assert.same({ 1, 2, 3, 4, 5 }, order)
    end)

    it("keeps a task alive that nobody refers to", function()
      local done
      spawn(function() sleep(0.005) done = true end)
      collectgarbage()
      collectgarbage()
      while core.step(1) do collectgarbage() end
      assert.is_true(done)
    end)
  end)

  describe("current", function()
    it("is the running task, in coroutines inside of it too, and nil outside", function()
      assert.is_nil(core.current())
      local t
      t = spawn(function()
        return core.current(), coroutine.wrap(function() return core.current() end)()
      end)
      local a, b = t:wait()
      assert.equal(t, a)
      assert.equal(t, b)
      assert.is_nil(core.current())
    end)
  end)

  describe("task:wait", function()
    it("returns the same results each time", function()
      local t = spawn(function() return 1, nil, 3 end)
      assert.same({ 1, nil, 3, n = 3 }, table.pack(t:wait()))
      assert.same({ 1, nil, 3, n = 3 }, table.pack(t:wait()))
    end)

    it("raises the same error each time", function()
      local t = spawn(error, "boom", 0)
      for _ = 1, 2 do
        local good, problem = pcall(t.wait, t)
        assert.same({ false, "boom" }, { good, problem })
      end
      assert.is_true(t.observed)
    end)

    it("serves several waiters", function()
      local t = spawn(function() sleep(0.002) return 7 end)
      local results = task.all {
        function() return t:wait() end, function() return t:wait() end, function() return t:wait() end,
      }
      assert.same({ 7, 7, 7, n = 3 }, results)
    end)

    it("gives an error value the traceback of its task, and others none", function()
      local function culprit() error(core.error("io", "x"), 0) end
      local t = spawn(function() sleep(0) culprit() end)
      local problem = raises("io", t.wait, t)
      assert.matches("in upvalue 'culprit'", problem.traceback)
      assert.equal(problem.traceback, t.traceback)
      assert.equal("x", tostring(problem))

      t = spawn(function() sleep(0) error "plain" end)
      local _, text = pcall(t.wait, t)
      assert.matches("task_spec.lua:%d+: plain$", text)
      assert.matches("stack traceback", t.traceback)
    end)

    it("keeps the first traceback as an error goes through tasks", function()
      local function deep() error(core.error("io", "x"), 0) end
      local inner = spawn(function() deep() end)
      local outer = spawn(function() inner:wait() end)
      local traceback = raises("io", outer.wait, outer).traceback
      assert.matches("deep", traceback)
      assert.equal(inner.traceback, traceback)
      assert.not_equal(outer.traceback, traceback)
    end)

    it("raises state when a task waits for itself", function()
      local t
      t = spawn(function() t:wait() end)
      raises("state", t.wait, t)
    end)

    it("raises state when tasks wait in a circle", function()
      local a, b, c
      a = spawn(function() b:wait() end)
      b = spawn(function() c:wait() end)
      c = spawn(function() a:wait() end)
      assert.matches("circle", raises("state", a.wait, a).message)
      -- it is the one who closes the circle that meets the error; the others get it from there
      assert.same({ "failed", "failed", "failed" }, { a.status, b.status, c.status })
      raises("state", c.wait, c)
    end)

    it("raises state when the circle goes through all", function()
      local a, b
      a = spawn(function() task.all { b, function() sleep(0) end } end)
      b = spawn(function() a:wait() end)
      raises("state", a.wait, a)
      pcall(b.wait, b)
    end)

    it("raises state on the main thread when nothing could ever end the wait", function()
      local lock = never()
      local t = spawn(function() lock:acquire() end)
      assert.matches("never end", raises("state", t.wait, t).message)
      raises("state", function() coroutine.wrap(function() t:wait() end)() end)
      lock:release()
      t:wait()
    end)

    it("is refused for what is no task", function()
      raises("invalid", spawn(function() end).wait, 1)
      raises("invalid", spawn(function() end).cancel, {})
      while core.step(0) do end
    end)
  end)

  describe("task.status", function()
    it("tells each state", function()
      local lock = never()
      local seen
      local t
      t = spawn(function() seen = t.status lock:acquire() end)
      assert.equal("ready", t.status)
      turns()
      assert.equal("running", seen)
      assert.equal("waiting", t.status)
      lock:release()
      assert.equal("ready", t.status)
      t:wait()
      assert.equal("done", t.status)
      assert.matches("^task %d+ done$", tostring(t))
      t = spawn(error, "x")
      pcall(t.wait, t)
      assert.equal("failed", t.status)
      t = spawn(print)
      t:cancel()
      assert.equal("cancelled", t.status)
      assert.is_nil(t.nonsense)
      assert.is_nil(t[1])
    end)
  end)

  describe("a waiting call", function()
    for name, call in pairs(contexts) do
      it("returns the same results in " .. name, function()
        assert.same({ "a", nil, "b", n = 3 }, table.pack(call(function()
          sleep(0.002)
          return "a", nil, "b"
        end)))
      end)

      it("meets a deadline in " .. name, function()
        raises("timeout", call, function() deadline(0.005, sleep, 30) end)
      end)

      it((private[name] and "runs no other task in " or "lets other tasks run in ") .. name, function()
        local other, during = 0, 0
        local t = spawn(function()
          for _ = 1, 5 do
            sleep(0)
            other = other + 1
          end
        end)
        call(function()
          local before = other
          sleep(0.02)
          during = other - before
        end)
        t:wait()
        assert.equal(5, other)
        assert.equal(private[name] and 0 or 5, during)
      end)

      if private[name] then
        it("raises state at once instead of waiting for a task in " .. name, function()
          local t = spawn(function() sleep(0.001) return 1 end)
          raises("state", call, function() return t:wait() end)
          raises("state", call, function() return run(print) end)
          raises("state", call, function() return task.all { function() end } end)
          assert.equal(1, t:wait())
          assert.equal(1, call(function() return t:wait() end))
        end)
      else
        it("waits for a task in " .. name, function()
          assert.equal(1, call(function() return spawn(function() sleep(0.001) return 1 end):wait() end))
        end)
      end
    end

    it("can be made from pcall, metamethods, iterators and closers written in Lua, in a task", function()
      run(function()
        local others = 0
        local t = spawn(function() while others < 5 do others = others + 1 sleep(0) end end)
        local object = setmetatable({}, {
          __index = function() sleep(0) return 1 end,
          __add = function() sleep(0) return 2 end,
          __close = function() sleep(0) end,
        })
        assert.equal(1, object.x)
        assert.equal(2, object + 1)
        do local _ <close> = object end
        for _ in function(_, i) sleep(0) if not i then return 1 end end do sleep(0) end
        assert.is_true(pcall(sleep, 0))
        t:wait()
        assert.equal(5, others)
      end)
    end)

    it("leaves a generator that yields between waits alone", function()
      local function numbers()
        return coroutine.wrap(function()
          for i = 1, 3 do
            sleep(0.001)
            coroutine.yield(i)
          end
        end)
      end
      local function sum()
        local total = 0
        for i in numbers() do total = total + i end
        return total
      end
      assert.equal(6, sum())
      assert.equal(6, run(sum))
      assert.same({ 6, 6, n = 2 }, task.all { sum, sum })
    end)

    it("is refused in a finaliser, whoever runs into it", function()
      local function attempt()
        local problem
        setmetatable({}, { __gc = function() problem = select(2, pcall(sleep, 0)) end })
        collectgarbage()
        return problem
      end
      assert.equal("state", attempt().kind)
      assert.equal("state", run(attempt).kind)
      assert.equal("state", coroutine.wrap(attempt)().kind)
      local problem
      setmetatable({}, { __gc = function() problem = select(2, pcall(core.step, 0)) end })
      collectgarbage()
      assert.is_false(problem) -- idle: nothing was waited for and nobody resumed
      local t = spawn(function() end)
      setmetatable({}, { __gc = function() problem = select(2, pcall(core.step, 0)) end })
      collectgarbage()
      assert.equal("state", problem.kind)
      t:wait()
    end)

    it("does not take an explicit __gc call for a finaliser", function()
      local object = setmetatable({}, { __gc = function() sleep(0) return "fine" end })
      assert.equal("fine", getmetatable(object).__gc(object))
      getmetatable(object).__gc = nil
    end)

    it("goes on when a stranger resumes the thread of a task", function()
      local thread
      local t = spawn(function()
        thread = coroutine.running()
        sleep(0.01)
        return "undisturbed"
      end)
      turns()
      assert.is_true(coroutine.resume(thread, 1, 2, 3))
      assert.is_true(coroutine.resume(thread))
      assert.equal("suspended", coroutine.status(thread))
      assert.equal("undisturbed", t:wait())
    end)

    it("ends as cancelled when a stranger closes the thread of a task", function()
      local thread, closed
      local t = spawn(function()
        thread = coroutine.running()
        local _ <close> = setmetatable({}, { __close = function() closed = true end })
        sleep(0.005)
      end)
      turns()
      assert.is_true(coroutine.close(thread))
      assert.is_true(closed)
      collectgarbage()
      raises("cancelled", t.wait, t)
      assert.equal("cancelled", t.status)
    end)

    it("works for a driver below a driver", function()
      -- main drives, a task resumes it, a hook of that task's sibling is not needed: __gc aside, a
      -- foreign coroutine on the main thread drives while main is below it
      local log = {}
      local t = spawn(function() for i = 1, 3 do sleep(0.001) log[#log + 1] = i end end)
      coroutine.wrap(function()
        coroutine.wrap(function() sleep(0.001) end)()
        t:wait()
      end)()
      assert.same({ 1, 2, 3 }, log)
    end)

    it("leaves what it could not do to the next driver", function()
      local log = {}
      local a = spawn(function() log[#log + 1] = "a" end)
      local b = spawn(function() log[#log + 1] = "b" end)
      a:wait()
      b:wait()
      assert.same({ "a", "b" }, log)
    end)
  end)

  describe("a coroutine.yield in a task", function()
    it("lets others have a turn when it yields nothing", function()
      local log = {}
      local function count(name)
        return function()
          for i = 1, 2 do
            log[#log + 1] = name .. i
            coroutine.yield()
          end
        end
      end
      task.all { count "a", count "b" }
      assert.same({ "a1", "b1", "a2", "b2" }, log)
    end)

    it("raises state when it yields values, which were meant for somebody else", function()
      local closed
      local t = spawn(function()
        local _ <close> = setmetatable({}, { __close = function() closed = true end })
        coroutine.yield("poll me")
      end)
      local problem = raises("state", t.wait, t)
      assert.matches("another scheduler", problem.message)
      assert.matches("in function 'coroutine.yield'", problem.traceback)
      assert.is_true(closed)
    end)
  end)

  describe("sleep", function()
    it("is never too short", function()
      for _, call in ipairs { contexts["the main thread"], contexts["a task"] } do
        local before = monotonic()
        call(function() sleep(0.05) end)
        local took = monotonic() - before
        assert.is_true(took >= 0.04, "took " .. took) -- the clock ticks in hundredths
      end
    end)

    it("ends in the order of the times", function()
      local order = {}
      local function sleeper(s) return function() sleep(s) order[#order + 1] = s end end
      task.all { sleeper(0.03), sleeper(0.01), sleeper(0.02), sleeper(0) }
      assert.same({ 0, 0.01, 0.02, 0.03 }, order)
    end)

    it("refuses what is no duration", function()
      for _, value in ipairs { -1, 0 / 0, "1", {}, -math.huge } do
        assert.matches("seconds", raises("invalid", sleep, value).message)
      end
      raises("invalid", sleep)
    end)

    it("may last for ever, until it is cancelled", function()
      local t = spawn(sleep, math.huge)
      turns()
      assert.is_nil(core.timeout())
      t:cancel()
      raises("cancelled", t.wait, t)
      raises("state", sleep, math.huge)
    end)

    it("lets timers through between busy tasks", function()
      local stop = false
      local busy = spawn(function() while not stop do sleep(0) end end)
      sleep(0.01)
      stop = true
      busy:wait()
    end)
  end)

  describe("task:cancel", function()
    it("never runs a task that has not started", function()
      local ran = false
      local t = spawn(function() ran = true end)
      t:cancel()
      assert.equal("cancelled", t.status)
      turns(3)
      assert.is_false(ran)
      assert.matches("before it started", raises("cancelled", t.wait, t).message)
    end)

    it("raises at the wait, and closes what is open", function()
      local log = {}
      local lock = never()
      local t = spawn(function()
        local _ <close> = setmetatable({}, { __close = function(_, problem)
          log[#log + 1] = problem.kind
        end })
        lock:acquire()
        log[#log + 1] = "not reached"
      end)
      turns()
      t:cancel()
      raises("cancelled", t.wait, t)
      assert.same({ "cancelled" }, log)
      assert.equal("cancelled", t.status)
    end)

    it("lets closers wait", function()
      local log = {}
      local t = spawn(function()
        local _ <close> = setmetatable({}, { __close = function()
          log[#log + 1] = "closing"
          sleep(0.002)
          log[#log + 1] = "closed"
        end })
        sleep(30)
      end)
      turns()
      t:cancel()
      raises("cancelled", t.wait, t)
      assert.same({ "closing", "closed" }, log)
    end)

    it("raises again in a closer that waits when it comes a second time", function()
      local second
      local t = spawn(function()
        local _ <close> = setmetatable({}, { __close = function()
          second = select(2, pcall(sleep, 30))
        end })
        sleep(30)
      end)
      turns()
      t:cancel()
      turns()
      assert.equal("waiting", t.status)
      t:cancel()
      raises("cancelled", t.wait, t)
      assert.equal("cancelled", second.kind)
    end)

    it("meets a running task at its next wait", function()
      local reached
      local t
      t = spawn(function()
        t:cancel()
        assert.is_true(t.cancelling)
        reached = true
        sleep(0)
        reached = "too far"
      end)
      raises("cancelled", t.wait, t)
      assert.is_true(reached)
    end)

    it("meets the next wait of a generator inside the task", function()
      local t
      t = spawn(function()
        t:cancel()
        return coroutine.wrap(function() sleep(10) end)()
      end)
      raises("cancelled", t.wait, t)
    end)

    it("does not undo what had come before", function()
      local lock = never()
      local t = spawn(function() lock:acquire() return "got it" end)
      turns()
      lock:release()
      t:cancel()
      assert.equal("got it", t:wait())
      assert.equal("done", t.status)
    end)

    it("may be swallowed: then the task is done", function()
      local t = spawn(function()
        pcall(sleep, 30)
        sleep(0)
        return "survived"
      end)
      turns()
      t:cancel()
      assert.equal("survived", t:wait())
      assert.equal("done", t.status)
    end)

    it("may end in another error: then the task has failed", function()
      local t = spawn(function()
        pcall(sleep, 30)
        error("other", 0)
      end)
      turns()
      t:cancel()
      assert.same({ false, "other" }, { pcall(t.wait, t) })
      assert.equal("failed", t.status)
    end)

    it("does nothing to a finished task, twice", function()
      local t = spawn(function() return 1 end)
      t:wait()
      t:cancel()
      t:close()
      assert.equal("done", t.status)
      assert.equal(1, t:wait())
    end)

    it("of one waiter leaves the others and what they wait for alone", function()
      local t = spawn(function() sleep(0.005) return 1 end)
      local a = spawn(function() return t:wait() end)
      local b = spawn(function() return t:wait() end)
      turns()
      a:cancel()
      raises("cancelled", a.wait, a)
      assert.equal(1, b:wait())
    end)

    it("leaves no timer behind", function()
      local t = spawn(sleep, 1000)
      turns()
      assert.is_true(core.timeout() > 900)
      t:close()
      raises("cancelled", t.wait, t)
      assert.is_nil(core.timeout())
    end)
  end)

  describe("a task as a to-be-closed variable", function()
    for name, call in pairs { ["the main thread"] = contexts["the main thread"], ["a task"] = run } do
      it("is cancelled and joined at the end of the block on " .. name, function()
        call(function()
          local t, closed
          do
            local mine <close> = spawn(function()
              local _ <close> = setmetatable({}, { __close = function() sleep(0.001) closed = true end })
              sleep(30)
            end)
            t = mine
            sleep(0)
          end
          assert.equal("cancelled", t.status)
          assert.is_true(closed)
        end)
      end)
    end

    it("keeps the error that ends the block", function()
      local good, problem = pcall(run, function()
        local _ <close> = spawn(sleep, 30)
        sleep(0)
        error("first", 0)
      end)
      assert.same({ false, "first" }, { good, problem })
    end)
  end)

  describe("deadline", function()
    it("passes arguments and results through when there is time enough", function()
      local function echo(...) sleep(0) return ... end
      assert.same({ 1, nil, 3, n = 3 }, table.pack(deadline(10, echo, 1, nil, 3)))
      assert.equal("x", run(deadline, 10, function() sleep(0) return "x" end))
      assert.equal(2, deadline(math.huge, function() sleep(0) return 2 end))
    end)

    it("passes errors through, with the stack of where they were raised", function()
      local function culprit() error "x" end
      local _, trace = xpcall(deadline, debug.traceback, 10, function() culprit() end)
      assert.matches("culprit", trace)
    end)

    it("refuses what is no time limit", function()
      for _, value in ipairs { 0, -1, 0 / 0, "1", -math.huge } do
        raises("invalid", deadline, value, print)
      end
      raises("invalid", deadline, 1)
      raises("invalid", deadline, 1, 2)
    end)

    for name, call in pairs(contexts) do
      it("nests in " .. name .. ": the nearer counts", function()
        call(function()
          local inner = raises("timeout", deadline, 30, function()
            deadline(0.005, sleep, 60)
          end)
          assert.matches("0.005 s", inner.message)
          local outer = raises("timeout", deadline, 0.005, function()
            deadline(30, sleep, 60)
          end)
          assert.matches("0.005 s", outer.message)
        end)
      end)
    end

    it("raises at the next wait when it passes outside of one", function()
      local reached
      raises("timeout", deadline, 0.001, function()
        local t = os.clock()
        while os.clock() - t < 0.005 do end
        reached = true
        sleep(0)
        reached = "too far"
      end)
      assert.is_true(reached)
    end)

    it("is over when its function has returned", function()
      for _, call in ipairs { contexts["the main thread"], contexts["a task"] } do
        call(function()
          deadline(0.001, function() end)
          sleep(0.003)
        end)
      end
    end)

    it("raises once, so that closers may wait", function()
      local closed
      raises("timeout", deadline, 0.002, function()
        local _ <close> = setmetatable({}, { __close = function() sleep(0.002) closed = true end })
        sleep(30)
      end)
      assert.is_true(closed)
    end)

    it("does not reach the tasks that its caller drives", function()
      local t = spawn(function() sleep(0.02) return "unhurt" end)
      raises("timeout", deadline, 0.002, sleep, 30)
      assert.equal("unhurt", t:wait())
    end)

    it("does not reach the tasks that are started in it, but their join", function()
      local t
      raises("timeout", run, function()
        deadline(0.002, function()
          t = spawn(function() sleep(0.01) return "unhurt" end)
          t:wait()
        end)
      end)
      assert.equal("unhurt", t:wait())
    end)

    it("is not in force while its generator is suspended", function()
      for _, call in ipairs { contexts["the main thread"], contexts["a task"] } do
        call(function()
          local generator = coroutine.wrap(function()
            deadline(0.001, function()
              coroutine.yield("inside")
              sleep(1)
            end)
          end)
          assert.equal("inside", generator())
          sleep(0.004) -- not the generator's wait
          raises("timeout", generator)
        end)
      end
    end)

    it("is forgotten with a generator that is dropped or closed", function()
      run(function()
        local function open()
          local co = coroutine.create(function() deadline(0.001, coroutine.yield, "x") end)
          coroutine.resume(co)
          return co
        end
        coroutine.close(open())
        open()
        collectgarbage()
        collectgarbage()
        sleep(0.003)
      end)
    end)

    it("may outlive its task in a generator", function()
      local generator = run(function()
        local g = coroutine.wrap(function() deadline(30, coroutine.yield, "x") return "end" end)
        g()
        return g
      end)
      collectgarbage()
      assert.equal("end", generator())
    end)

    it("bounds the wait for a task that never ends, on the main thread", function()
      local lock = never()
      local t = spawn(lock.acquire, lock)
      raises("timeout", deadline, 0.002, t.wait, t)
      t:cancel()
      raises("cancelled", t.wait, t)
    end)
  end)

  describe("queue", function()
    it("lets one in at a time, in the order of arrival", function()
      local queue, log = core.queue(), {}
      local function worker(name)
        return function()
          for i = 1, 2 do
            local _ <close> = queue:acquire()
            log[#log + 1] = name .. i
            sleep(0)
          end
        end
      end
      task.all { worker "a", worker "b", worker "c" }
      assert.same({ "a1", "b1", "c1", "a2", "b2", "c2" }, log)
      assert.equal("queue (free)", tostring(queue))
    end)

    it("hands over past one who was cancelled in line", function()
      local queue = core.queue()
      queue:acquire()
      local a = spawn(function() queue:acquire() end)
      local b = spawn(function() queue:acquire() queue:release() return "b" end)
      turns()
      assert.equal("queue (held, 2 waiting)", tostring(queue))
      a:cancel()
      raises("cancelled", a.wait, a)
      queue:release()
      assert.equal("b", b:wait())
      assert.equal("queue (free)", tostring(queue))
    end)

    it("goes on to the next when a stranger closes the thread it was granted to", function()
      local queue = core.queue()
      queue:acquire()
      local thread
      local a = spawn(function() thread = coroutine.running() queue:acquire() end)
      local b = spawn(function() queue:acquire() return "b" end)
      turns()
      queue:release()
      coroutine.close(thread)
      assert.equal("b", b:wait())
      raises("cancelled", a.wait, a)
    end)

    it("is waited for on the main thread as well", function()
      local queue = core.queue()
      local t = spawn(function()
        local _ <close> = queue:acquire()
        sleep(0.002)
      end)
      turns()
      queue:acquire()
      assert.equal("done", t.status)
      queue:release()
    end)

    it("gives up its place at a deadline", function()
      local queue = core.queue()
      queue:acquire()
      raises("timeout", run, deadline, 0.002, queue.acquire, queue)
      assert.equal("queue (held, 0 waiting)", tostring(queue))
    end)

    it("raises state when it is misused", function()
      local queue = core.queue()
      raises("state", queue.release, queue)
      queue:acquire()
      raises("state", queue.acquire, queue)
      queue:release()
      raises("state", run, function() queue:acquire() queue:acquire() end)
    end)
  end)

  describe("step, fd and timeout", function()
    -- What a host does: poll the descriptor, no longer than we say.
    local function host(budget)
      local rounds = 0
      while core.step(0) do
        rounds = rounds + 1
        assert.is_true(rounds < budget, "spinning")
        local wait = core.timeout()
        if wait and wait > 0 then
          -- stands for poll(fd, wait): the descriptor is readable or the time is over
          local t = spawn(function() end)
          t:cancel()
          core.step(wait)
        end
      end
    end

    it("drive tasks from a loop of the host's own", function()
      local log = {}
      for i = 1, 3 do spawn(function() sleep(0.003 * i) log[#log + 1] = i end) end
      host(100)
      assert.same({ 1, 2, 3 }, log)
    end)

    it("tell whether tasks remain", function()
      assert.is_false(core.step(0))
      local t = spawn(function() sleep(0.001) end)
      assert.is_true(core.step(0))
      while core.step(1) do end
      assert.equal("done", t.status)
    end)

    it("tell how long there is nothing to do", function()
      assert.is_nil(core.timeout())
      local t = spawn(sleep, 5)
      assert.equal(0, core.timeout())
      turns()
      local seconds = core.timeout()
      assert.is_true(seconds > 4 and seconds < 5.1)
      t:cancel()
      assert.equal(0, core.timeout())
      raises("cancelled", t.wait, t)
    end)

    it("give one descriptor", function()
      assert.equal("integer", math.type(core.fd()))
      assert.equal(core.fd(), core.fd())
    end)

    it("never wait at step(0), nor at step() or with nothing to wait for", function()
      local t = spawn(sleep, 5)
      local before = monotonic()
      for _ = 1, 10 do core.step(0) core.step() end
      t:cancel()
      core.step(5)
      core.step(5)
      core.step(math.huge)
      assert.is_true(monotonic() - before < 1)
    end)

    it("wait no longer than they were told", function()
      local t = spawn(sleep, 1000)
      turns()
      local before = monotonic()
      assert.is_true(core.step(0.03))
      local took = monotonic() - before
      assert.is_true(took >= 0.02 and took < 2, "took " .. took)
      t:cancel()
      turns()
    end)

    it("run each ready task once a step, so that a frame ends", function()
      local count = 0
      local stop = false
      local t = spawn(function() while not stop do count = count + 1 sleep(0) end end)
      for i = 1, 5 do
        core.step(0)
        assert.equal(i, count)
      end
      stop = true
      t:wait()
    end)

    it("survive a task that fails", function()
      local t = spawn(error, "x")
      local other = spawn(function() sleep(0) return "fine" end)
      while core.step(0) do end
      assert.equal("fine", other:wait())
      pcall(t.wait, t)
    end)

    it("are refused inside a task, and with nonsense", function()
      raises("state", run, core.step, 0)
      raises("invalid", core.step, -1)
      raises("invalid", core.step, 0 / 0)
    end)

    it("cost less than 5 microseconds when there is nothing to do", function()
      local best = math.huge
      for _ = 1, 5 do
        local before = os.clock()
        for _ = 1, 2000 do core.step(0) end
        best = math.min(best, (os.clock() - before) / 2000)
      end
      if not os.getenv "LD_PRELOAD" and not os.getenv "BOUGH_SLOW" then
        assert.is_true(best < 5e-6, ("%.2f us"):format(best * 1e6))
      end
    end)
  end)

  describe("an error that nobody waits for", function()
    it("reaches on_error, with value and traceback, and warn", function()
      local output, good = script [[
        warn "@on"
        core.on_error(function(problem, traceback)
          print("handler", problem, traceback:match "stack traceback", pcall(core.sleep, 0))
        end)
        core.spawn(error, "lost", 0)
        while core.step(0) do end
        collectgarbage()
      ]]
      assert.is_true(good, output)
      assert.matches("handler\tlost\tstack traceback\tfalse\tcannot wait in a finaliser", output)
      assert.matches("Lua warning: bough: a task failed and nobody waited for it: lost\nstack trace", output)
    end)

    it("reaches warn when the state closes", function()
      local output, good = script [[
        warn "@on"
        keep = core.spawn(error, core.error("io", "late"), 0)
        while core.step(0) do end
      ]]
      assert.is_true(good, output)
      assert.matches("nobody waited for it: late\n", output)
    end)

    it("is not reported when it was waited for, nor for the cancelled", function()
      local output = script [[
        warn "@on"
        local a, b = core.spawn(error, "x"), core.spawn(core.sleep, 9)
        pcall(a.wait, a)
        core.step(0) b:cancel()
        core.spawn(print):cancel()
        while core.step(0) do end
      ]]
      assert.equal("", output)
    end)

    it("survives a handler that fails and values that cannot be told", function()
      local output, good = script [[
        warn "@on"
        core.on_error(function() error "handler" end)
        core.spawn(error, setmetatable({}, { __tostring = function() error "no" end }))
        core.spawn(error)
        while core.step(0) do end
        collectgarbage()
        print "alive"
      ]]
      assert.is_true(good, output)
      assert.matches("on_error function failed", output)
      assert.matches("alive", output)
    end)

    it("has a handler that can be taken back", function()
      local function handler() end
      assert.is_nil(core.on_error(handler))
      assert.equal(handler, core.on_error(nil))
      raises("invalid", core.on_error, 1)
    end)
  end)

  describe("closing the state", function()
    it("drops tasks in every state", function()
      local output, good = script [[
        local queue = core.queue()
        queue:acquire()
        local keep = {}
        for i = 1, 20 do
          keep[#keep + 1] = core.spawn(core.sleep, 100)
          core.spawn(function() queue:acquire() end)
          core.spawn(function() core.deadline(5, keep[1].wait, keep[1]) end)
          core.spawn(function() task.all { function() core.sleep(9) end, keep[1] } end)
          core.spawn(function()
            local s <close> = task.scope()
            s:spawn(core.sleep, 8)
            coroutine.yield()
          end)
          core.spawn(function()
            coroutine.wrap(function() core.deadline(1, coroutine.yield, 1) end)()
            coroutine.yield()
          end)
        end
        core.step(0) core.step(0)
        keep.late = core.spawn(print)
        keep[2]:cancel()
        setmetatable({}, { __gc = function()
          print(keep[1].status, (pcall(core.spawn, print)), (pcall(core.sleep, 0)))
        end })
      ]]
      assert.is_true(good, output)
      assert.matches("false\n$", output)
    end)

    it("works from inside a task", function()
      local output, good = script [[
        core.spawn(core.sleep, 9)
        core.run(function() core.sleep(0) io.stdout:write "bye" os.exit(0, true) end)
      ]]
      assert.is_true(good, output)
      assert.equal("bye", output)
    end)

    it("lets finalisers older than the module find it closed", function()
      local output, good = script [[
        -- made before the core would be: run in a state of its own order, so only the outcome counts
        local t = core.spawn(core.sleep, 1)
        core.step(0)
        setmetatable(core, { __gc = function() t:cancel() t:close() print(t.status) end })
      ]]
      assert.is_true(good, output)
    end)
  end)

  describe("loading", function()
    it("works inside a coroutine that is gone afterwards", function()
      local output, good = script [[
        package.loaded["bough.core"] = nil
        local co = coroutine.wrap(function() return require "bough.core" end)
        local again = co()
        co = nil
        collectgarbage() collectgarbage()
        print(again.run(function() again.sleep(0.001) return "fine" end))
      ]]
      assert.is_true(good, output)
      assert.equal("fine\n", output)
    end)

    it("works when a coroutine is the first to load it", function()
      local path, cpath = package.path, package.cpath
      local file = os.tmpname()
      local handle = assert(io.open(file, "w"))
      handle:write(([[package.path, package.cpath = %q, %q
        local core
        coroutine.wrap(function() core = require "bough.core" core.sleep(0) end)()
        collectgarbage() collectgarbage()
        print(core.run(function() core.sleep(0.001) return "fine" end))]]):format(path, cpath))
      handle:close()
      local pipe = assert(io.popen(("%s %s 2>&1"):format(arg and arg[-1] or "lua5.4", file)))
      assert.equal("fine\n", pipe:read "a")
      pipe:close()
      os.remove(file)
    end)

    it("sets no global", function()
      local output = script [[for name in pairs(_G) do if name:find "bough" then print(name) end end]]
      assert.equal("", output)
    end)
  end)

  describe("many tasks", function()
    it("wait for each other in a chain of 10000", function()
      local last = spawn(function() sleep(0.001) return 1 end)
      for _ = 1, 10000 do
        local before = last
        last = spawn(function() return before:wait() + 1 end)
      end
      assert.equal(10001, last:wait())
    end)

    it("wait in a chain of 10000 that is built while it runs", function()
      local function link(n)
        if n == 0 then
          sleep(0.001)
          return 0
        end
        return spawn(link, n - 1):wait() + 1
      end
      assert.equal(10000, run(link, 10000))
    end)

    it("fail through a chain of 1000", function()
      local last = spawn(function() sleep(0) error(core.error("io", "deep"), 0) end)
      for _ = 1, 1000 do
        local before = last
        last = spawn(function() return before:wait() end)
      end
      assert.equal("deep", raises("io", last.wait, last).message)
    end)

    it("are collected when they are done", function()
      local function burst()
        for _ = 1, 500 do spawn(function() sleep(0) return {} end) end
        while core.step(0) do end
        collectgarbage()
        collectgarbage()
        return collectgarbage "count"
      end
      burst()
      local before = burst()
      for _ = 1, 10 do burst() end
      assert.is_true(burst() < before + 100)
    end)
  end)
end)

describe("bough.task", function()
  after_each(function()
    collectgarbage()
    assert.is_false(core.step(0), "tasks are left")
    assert.is_nil(core.timeout(), "something is left in the loop")
  end)

  for name, call in pairs { ["the main thread"] = contexts["the main thread"],
    ["a task"] = run, ["a foreign coroutine"] = contexts["a foreign coroutine"] } do
    describe("on " .. name, function()
      it("all returns first results in the order of the list, nils included", function()
        call(function()
          local results = task.all {
            function() sleep(0.004) return "slow", "dropped" end,
            function() return nil end,
            spawn(function() return 3 end),
          }
          assert.same({ "slow", nil, 3, n = 3 }, results)
          assert.same({ n = 0 }, task.all {})
        end)
      end)

      it("all runs its items at once", function()
        call(function()
          local inside, most = 0, 0
          local function item()
            inside = inside + 1
            most = math.max(most, inside)
            sleep(0)
            inside = inside - 1
          end
          task.all { item, item, item, item }
          assert.equal(4, most)
          most = 0
          task.all { item, item, item, item, item, limit = 2 }
          assert.equal(2, most)
        end)
      end)

      it("all cancels and joins the others at the first failure, and raises it", function()
        call(function()
          local log = {}
          local good, problem = pcall(task.all, {
            function()
              local _ <close> = setmetatable({}, { __close = function()
                sleep(0.001)
                log[#log + 1] = "closed"
              end })
              sleep(30)
            end,
            function() sleep(0) error("first", 0) end,
            function() sleep(30) end,
          })
          assert.same({ false, "first" }, { good, problem })
          assert.same({ "closed" }, log)
        end)
      end)

      it("all starts nothing more after a failure", function()
        call(function()
          local started = 0
          local function item() started = started + 1 end
          pcall(task.all, { item, function() error("x", 0) end, item, item, limit = 1 })
          assert.equal(1, started)
        end)
      end)

      it("all collects everything with settle", function()
        call(function()
          local results = task.all {
            function() error("a", 0) end, function() sleep(0) return 2 end, settle = true,
          }
          assert.same({ { ok = false, err = "a" }, { ok = true, value = 2 }, n = 2 }, results)
        end)
      end)

      it("race returns all results of the first, and ends the others", function()
        call(function()
          local closed
          assert.same({ "won", 2, n = 2 }, table.pack(task.race {
            function()
              local _ <close> = setmetatable({}, { __close = function() closed = true end })
              sleep(30)
            end,
            function() sleep(0.001) return "won", 2 end,
          }))
          assert.is_true(closed)
          raises("io", task.race, { function() error(core.error("io", "x"), 0) end, function() sleep(9) end })
        end)
      end)

      it("completed yields in the order of finishing, errors too", function()
        call(function()
          local log = {}
          for i, value, problem in task.completed {
            function() sleep(0.01) return "a" end,
            function() return "b" end,
            function() sleep(0.003) error("c", 0) end,
          } do
            log[#log + 1] = i .. tostring(value) .. tostring(problem)
          end
          assert.same({ "2bnil", "3nilc", "1anil" }, log)
        end)
      end)

      it("completed ends the rest when the loop is left", function()
        call(function()
          local closed = 0
          local function item(s)
            return function()
              local _ <close> = setmetatable({}, { __close = function() closed = closed + 1 end })
              sleep(s)
            end
          end
          for _ in task.completed { item(0), item(30), item(30) } do -- luacheck: ignore 512
            break
          end
          assert.equal(3, closed)
        end)
      end)

      it("scope joins its tasks on the way out", function()
        call(function()
          local log = {}
          local result = task.scope(function(s, argument)
            s:spawn(function() sleep(0.002) log[#log + 1] = "child" end)
            log[#log + 1] = "body"
            return argument
          end, "argument")
          assert.equal("argument", result)
          assert.same({ "body", "child" }, log)
        end)
      end)

      it("scope cancels and joins its tasks when an error ends it", function()
        call(function()
          local log = {}
          local good, problem = pcall(function()
            local s <close> = task.scope()
            s:spawn(function()
              local _ <close> = setmetatable({}, { __close = function()
                sleep(0.001)
                log[#log + 1] = "closed"
              end })
              sleep(30)
            end)
            sleep(0)
            error("body", 0)
          end)
          assert.same({ false, "body" }, { good, problem })
          assert.same({ "closed" }, log)
        end)
      end)

      it("scope raises the first failure, and ends the others", function()
        call(function()
          local ended
          local good, problem = pcall(task.scope, function(s)
            s:spawn(function()
              local _ <close> = setmetatable({}, { __close = function() ended = true end })
              sleep(30)
            end)
            s:spawn(function() sleep(0.001) error("child", 0) end)
          end)
          assert.same({ false, "child" }, { good, problem })
          assert.is_true(ended)
        end)
      end)

      it("scope keeps quiet about a failure that was waited for", function()
        call(function()
          task.scope(function(s)
            local t = s:spawn(error, "handled", 0)
            assert.is_false(pcall(t.wait, t))
          end)
        end)
      end)
    end)
  end

  describe("all", function()
    it("is ended by a deadline, with its tasks", function()
      local closed = 0
      local function item()
        local _ <close> = setmetatable({}, { __close = function() sleep(0) closed = closed + 1 end })
        sleep(30)
      end
      raises("timeout", deadline, 0.005, task.all, { item, item })
      raises("timeout", run, deadline, 0.005, task.all, { item, item })
      assert.equal(4, closed)
    end)

    it("is ended by cancellation, with its tasks", function()
      local closed = 0
      local function item()
        local _ <close> = setmetatable({}, { __close = function() sleep(0) closed = closed + 1 end })
        sleep(30)
      end
      local t = spawn(task.all, { item, function() task.all { item, item } end })
      turns(3)
      t:cancel()
      raises("cancelled", t.wait, t)
      assert.equal(3, closed)
    end)

    it("goes on joining when it is cancelled while it joins", function()
      local closed
      local t = spawn(task.all, {
        function()
          local _ <close> = setmetatable({}, { __close = function()
            pcall(sleep, 30)
            sleep(0.001)
            closed = true
          end })
          sleep(30)
        end,
        function() error("first", 0) end,
      })
      turns(3)
      assert.is_nil(closed)
      t:cancel()
      local problem = raises("cancelled", t.wait, t)
      assert.is_true(closed)
      assert.equal("first", problem.cause)
    end)

    it("handles a thousand items", function()
      local items = { limit = 50 }
      for i = 1, 1000 do items[i] = function() sleep(0) return i end end
      local results = task.all(items)
      assert.equal(1000, results.n)
      assert.equal(777, results[777])
    end)

    it("says what is wrong with a list", function()
      local function message(list) return raises("invalid", task.all, list).message end
      local t = spawn(print)
      assert.matches("expected a table", message(1))
      assert.matches("item 2 is neither", message { print, 5 })
      assert.matches("item 1 is neither", message { nil, print, n = 2 })
      assert.matches("item 2 is the same task as item 1", message { t, t })
      assert.matches('unknown option "limits": known are limit, settle', message { limits = 1 })
      assert.matches("limit must be a positive integer", message { limit = 0 })
      assert.matches("limit must be a positive integer", message { limit = 1.5 })
      assert.matches("n must be", message { n = -1 })
      assert.matches("beyond the end", message { print, print, n = 1 })
      assert.matches("nobody", raises("invalid", task.race, {}).message)
      t:cancel()
    end)
  end)

  describe("scope", function()
    it("cancels on request and starts no more then", function()
      task.scope(function(s)
        local t = s:spawn(sleep, 30)
        s:cancel()
        raises("closed", s.spawn, s, print)
        raises("cancelled", t.wait, t)
      end)
    end)

    it("takes tasks that its tasks start", function()
      local log = {}
      task.scope(function(s)
        s:spawn(function()
          sleep(0.001)
          s:spawn(function() sleep(0.001) log[#log + 1] = "grandchild" end)
        end)
      end)
      assert.same({ "grandchild" }, log)
    end)

    it("is closed afterwards, and closing twice does nothing", function()
      local s = task.scope()
      s:spawn(function() end)
      assert.matches("scope %(open, 1 tasks%)", tostring(s))
      s:close()
      s:close()
      raises("closed", s.spawn, s, print)
      raises("invalid", task.scope, 1)
    end)

    it("forgets what is finished while it goes on", function()
      local s <close> = task.scope()
      local seen = setmetatable({}, { __mode = "k" })
      for _ = 1, 200 do
        seen[s:spawn(function() end)] = true
        core.step(0)
      end
      collectgarbage()
      collectgarbage()
      local count = 0
      for _ in pairs(seen) do count = count + 1 end
      assert.is_true(count < 20)
    end)

    it("cancels what it cannot join, in a closer that cannot wait", function()
      run(function()
        local t
        local co = coroutine.create(function()
          local s <close> = task.scope()
          t = s:spawn(sleep, 30)
          coroutine.yield()
        end)
        coroutine.resume(co)
        sleep(0)
        coroutine.close(co)
        raises("cancelled", t.wait, t)
      end)
    end)
  end)
end)
