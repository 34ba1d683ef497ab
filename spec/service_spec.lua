--- Services, conditions and polls: what engines written in Lua do in the background.

local core = require "bough.core"
local raises = require "spec.support.raises"
local uv = require "luv"

-- Calls `body` where nothing can yield, inside a task: waits in there are private.
local function in_comparator(body)
  return core.run(function()
    local result
    table.sort({ 1, 2 }, function(a, b)
      result = result or table.pack(body())
      return a < b
    end)
    return table.unpack(result, 1, result.n)
  end)
end

-- The same in a generator inside a task.
local function in_generator(body)
  return core.run(function() return coroutine.wrap(body)() end)
end

local everywhere = {
  { "on the main thread", function(body) return body() end },
  { "in a task", core.run },
  { "in a generator", function(body) return coroutine.wrap(body)() end },
  { "in a generator inside a task", in_generator },
  { "where nothing can yield", in_comparator },
}

describe("a service", function()
  for _, place in ipairs(everywhere) do
    it("runs while somebody waits " .. place[1], function()
      local steps, done = 0, core.condition()
      local seen = place[2](function()
        core.service(function()
          for _ = 1, 5 do
            core.sleep(0.001)
            steps = steps + 1
          end
          done:fire()
        end)
        assert.is_true(done:wait(20))
        return steps
      end)
      assert.equal(5, seen)
    end)

    it("can be waited for " .. place[1], function()
      assert.equal("answer", place[2](function()
        return core.service(function()
          core.sleep(0)
          return "answer"
        end):wait()
      end))
    end)
  end

  it("runs in a private wait, where ordinary tasks stand still", function()
    local task_ran, service_ran = false, false
    local task = core.spawn(function() task_ran = true end)
    local seen = table.pack(in_comparator(function()
      local other = core.spawn(function() task_ran = "other" end)
      core.service(function() service_ran = true end)
      task_ran = false
      core.sleep(0.01)
      local now = task_ran
      other:cancel()
      return now, service_ran
    end))
    assert.same({ false, true, n = 2 }, seen)
    task:wait()
  end)

  it("starts another one, and wakes who waits in several at once", function()
    local order = {}
    in_comparator(function()
      local ready = core.condition()
      local first = core.service(function()
        local second = core.service(function()
          order[#order + 1] = "second"
          ready:fire()
        end)
        second:wait()
        order[#order + 1] = "first"
      end)
      assert.is_true(ready:wait(20))
      first:wait()
    end)
    assert.same({ "second", "first" }, order)
  end)

  it("is waited for in vain only as long as a deadline says", function()
    local never = core.condition()
    local service = core.service(function() never:wait() end)
    in_comparator(function() raises("timeout", core.deadline, 0.01, service.wait, service) end)
    service:cancel()
    raises("cancelled", service.wait, service)
  end)

  it("lets a wait that nobody can end be told as that", function()
    in_comparator(function()
      local never = core.condition()
      raises("state", never.wait, never)
    end)
    local never = core.condition()
    raises("state", never.wait, never)
  end)

  it("raises where it is waited for", function()
    local service = core.service(error, core.error("io", "broken", {}))
    raises("io", service.wait, service)
    raises("invalid", core.service, 1)
  end)
end)

describe("a condition", function()
  it("tells whether it fired before the time passed", function()
    local condition = core.condition()
    assert.is_false(condition:wait(0))
    assert.is_false(condition:wait(0.001))
    core.spawn(function() condition:fire() end)
    assert.is_true(condition:wait(20))
    condition:fire() -- is not remembered
    assert.is_false(condition:wait(0))
  end)

  it("wakes all who wait", function()
    local condition, woken = core.condition(), 0
    core.run(function()
      local tasks = {}
      for i = 1, 10 do
        tasks[i] = core.spawn(function()
          condition:wait()
          woken = woken + 1
        end)
      end
      core.sleep(0)
      condition:fire()
      for _, task in ipairs(tasks) do task:wait() end
    end)
    assert.equal(10, woken)
  end)

  it("refuses what is no condition and no time", function()
    local condition = core.condition()
    raises("invalid", condition.wait, {})
    raises("invalid", condition.wait, condition, -1)
    raises("invalid", condition.wait, condition, "soon")
  end)
end)

describe("a poll", function()
  local ends

  lazy_teardown(function() uv.loop_close() end) -- it has descriptors of its own

  before_each(function() ends = uv.pipe() end)

  after_each(function()
    for _, fd in pairs(ends) do uv.fs_close(fd) end
  end)

  for _, place in ipairs(everywhere) do
    it("waits until a descriptor can be read, " .. place[1], function()
      local poll <close> = core.poll(ends.read)
      place[2](function()
        assert.is_false(poll:wait(0))
        assert.is_false(poll:wait(0.001))
        core.service(function()
          core.sleep(0.001)
          uv.fs_write(ends.write, "x")
        end)
        assert.is_true(poll:wait(20))
        assert.is_true(poll:wait(20)) -- still
        uv.fs_read(ends.read, 10)
        assert.is_false(poll:wait(0.001))
      end)
    end)
  end

  it("wakes who waits when it is closed, with kind closed", function()
    local poll = core.poll(ends.read)
    local task = core.spawn(pcall, poll.wait, poll)
    core.sleep(0)
    poll:close()
    poll:close()
    local good, problem = task:wait()
    assert.is_false(good)
    assert.equal("closed", problem.kind)
    raises("closed", poll.wait, poll)
  end)

  it("refuses what cannot be watched", function()
    raises("io", core.poll, 100000)
    raises("invalid", core.poll(ends.read).wait, {})
  end)
end)
