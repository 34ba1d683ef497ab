--- 500 processes at once in 50 sandboxes, with whatever can happen to them at any time; and then nothing is left.
--
-- BOUGH_TEST_STRESS: seconds (default 5). BOUGH_TEST_SEED repeats the choices, as far as the machine repeats its times.

local bough = require "bough"
local fixture = require "spec.engine.fixture"
local lfs = require "lfs"
local scratch = require "spec.support.scratch"
local system = require "system"

local SECONDS = tonumber(os.getenv "BOUGH_TEST_STRESS") or 5
local SEED = math.tointeger(tonumber(os.getenv "BOUGH_TEST_SEED")) or os.time()
local INSTANCES = 50
local KEPT = 80 -- the keeper keeps of so many ended sandboxes, or fewer, what the next ones can use
local BLANK = 10 -- processes and descriptors of blank sandboxes, which it makes ready as it likes

-- 500, or what the descriptors of this process suffice for.
local PROCESSES
do
  local soft = fixture.read_file "/proc/self/limits":match "Max open files%s+(%d+)"
  PROCESSES = math.min(500, (tonumber(soft) - 300) // 4)
end

local random = math.random

-- Everything of the machine's processes that matters here: pid -> { parent, state }.
local function processes()
  local all = {}
  for name in lfs.dir "/proc" do
    local stat = name:find "^%d+$" and fixture.read_file("/proc/" .. name .. "/stat")
    local state, parent = (stat or ""):match "%) (%a) (%d+)"
    if state then all[math.tointeger(name)] = { parent = math.tointeger(parent), state = state } end
  end
  return all
end

-- The processes below `root`, and how many of them are zombies.
local function family(root)
  local all, children, zombies = processes(), 0, 0
  for pid, one in pairs(all) do
    local at = one
    while at and at.parent ~= root do at = all[at.parent] end
    if at and pid ~= root then
      children = children + 1
      zombies = zombies + (one.state == "Z" and 1 or 0)
    end
  end
  return children, zombies
end

-- How many descriptors a process has; nil where we may not look.
local function descriptors(pid)
  local count = 0
  local good = pcall(function()
    for name in lfs.dir(("/proc/%s/fd"):format(pid)) do
      if name:find "^%d" then count = count + 1 end
    end
  end)
  return good and count or nil
end

describe("under stress", function()
  local box, base, keeper

  setup(function()
    box = bough.open(scratch.store())
    base = box.images:use "busybox"
    keeper = box:info().keeper_pid
    -- what the keeper keeps of ended sandboxes for the next ones is there before it is counted
    local instances = {}
    for i = 1, KEPT do
      instances[i] = base:boot()
      instances[i]:exec({ "true", pty = true }):wait()
    end
    instances[1]:commit()
    for _, instance in ipairs(instances) do instance:close() end
    base:run "true"
  end)

  teardown(function() box:close() end)

  -- A place for processes: an instance, which others end at any time; `ended` says that they have, or are at it.
  local function boot(slot)
    slot.place = { instance = base:boot(), ended = false }
    return slot.place
  end

  local allowed_when_ended = { closed = true, cancelled = true, state = true }

  local actions = {}

  function actions.answer(instance)
    local number, code = random(1 << 30), random(0, 255)
    local process <close> = instance:exec { shell = "read n; echo $n; exit " .. code, stdin = bough.PIPE }
    process.stdin:write(number, "\n")
    local answer = process.stdout:read "n"
    local ended = process:wait()
    return answer == number and ended == code, ("%s and %s for %d and %d"):format(answer, ended, number, code)
  end

  function actions.mirror(instance)
    local process <close> = instance:exec { "cat", stdin = bough.PIPE }
    local text = ("%d "):format(random(1 << 30)):rep(random(1, 20000))
    local _ <close> = bough.spawn(function() process.stdin:write(text):close() end)
    local back = process.stdout:read "a"
    local code = process:wait()
    return code == 0 and back == text, ("%s, %d of %d bytes"):format(code, #back, #text)
  end

  function actions.communicate(instance)
    local process <close> = instance:exec { shell = "tee /dev/stderr", stdin = bough.PIPE }
    local text = ("x"):rep(random(0, 300000))
    local out, err = process:communicate(text)
    return out == text and err == text, ("%d and %d of %d bytes"):format(#out, #err, #text)
  end

  function actions.kill(instance)
    local number = ({ 1, 2, 9, 10, 15 })[random(5)]
    local process <close> = instance:exec { "sleep", "1000" }
    if random(2) == 1 then bough.sleep(random() * 0.1) end
    process:kill(number)
    local code = process:wait()
    return code == 128 + number, ("%s after %d"):format(code, number)
  end

  function actions.expire(instance)
    local process <close> = instance:exec {
      shell = random(2) == 1 and "sleep 1000 & sleep 1000" or "while :; do :; done", timeout = 0.05 + random() * 0.1,
    }
    local code = process:wait()
    return code == 137 and process.timed_out, tostring(process)
  end

  -- Cancelled wherever it is.
  function actions.give_up(instance)
    pcall(bough.deadline, random() * 0.2, function()
      local process <close> = instance:exec { shell = "sleep 1000 & cat; sleep 1000", stdin = bough.PIPE }
      local way = random(6)
      if way == 1 then process:wait() end
      if way == 2 then process:communicate(("x"):rep(300000)) end
      if way == 3 then process.stdout:read "a" end
      if way == 4 then process.stdin:write(("x"):rep(3000000)) end
      if way == 5 then process:close() end
      if way == 6 then for _ in process.stderr:lines() do end end
    end)
    return true
  end

  function actions.cancel(instance)
    local task = bough.spawn(function()
      local process <close> = instance:exec "echo ready; sleep 1000"
      process.stdout:read()
      process:wait()
    end)
    bough.sleep(random() * 0.1)
    task:cancel()
    pcall(task.wait, task)
    return true
  end

  function actions.forget(instance)
    instance:exec("echo x; sleep 1000").stdout:read()
    return true
  end

  function actions.close(instance)
    local process = instance:exec "while :; do echo y; done"
    local line = process.stdout:read()
    local _, how, number = process:close()
    return line == "y" and how == "signal" and number == 13, ("%s, %s %s"):format(line, how, number)
  end

  function actions.impatient(instance)
    local process <close> = instance:exec { "cat", stdin = bough.PIPE }
    local early, problem = pcall(process.wait, process, random() * 0.05)
    if early or problem.kind ~= "timeout" then return false, tostring(problem) end
    early = pcall(bough.deadline, random() * 0.05, process.stdout.read, process.stdout)
    process.stdin:write "late\n"
    local line = process.stdout:read()
    process.stdin:close()
    return not early and line == "late" and process:wait() == 0, tostring(line)
  end

  function actions.terminal(instance)
    local process <close> = instance:exec {
      shell = "stty size; read x; echo got $x", pty = { rows = 7, cols = random(99) },
    }
    local size = process.stdout:read() or "nothing"
    process.stdin:write "it\n"
    local rest = process.stdout:read "a"
    return process:wait() == 0 and size:find "^7 %d+\r$" and rest:find "got it", size .. rest
  end

  function actions.chain(instance)
    local one <close> = instance:exec { "seq", "20000" }
    local two <close> = instance:exec { "wc", "-l", stdin = one.stdout }
    local count = two.stdout:read "n"
    return count == 20000 and one:wait() == 0 and two:wait() == 0, tostring(count)
  end

  function actions.misfit(instance)
    local good, problem = pcall(instance.exec, instance, { "no-such-program", stdin = bough.PIPE })
    if good then return false, "it started" end
    if problem.kind == "not_found" then return true end
    error(problem, 0)
  end

  function actions.ignore(instance)
    local process = instance:exec { "dd", "if=/dev/zero", "bs=64k", "count=" .. random(64), stderr = false }
    local code = process:wait()
    return code == 0, tostring(code)
  end

  local names = {}
  for name in pairs(actions) do names[#names + 1] = name end
  table.sort(names)

  it(("%d processes in %d sandboxes come and go for %g s, and nothing is left"):format(PROCESSES, INSTANCES, SECONDS),
    function()
      io.write(("# BOUGH_TEST_SEED=%d\n"):format(SEED))
      math.randomseed(SEED)
      collectgarbage()
      local before = {
        own = descriptors "self", keeper = descriptors(keeper), family = family(keeper),
      }
      local slots, counts, doing, commits, ends = {}, {}, {}, 0, 0

      bough.deadline(SECONDS + 240, function()
        bough.all((function()
          local list = { limit = 8 }
          for i = 1, INSTANCES do
            slots[i] = {}
            list[i] = function() boot(slots[i]) end
          end
          return list
        end)())

        -- all of them at once
        local alive = {}
        for i = 1, PROCESSES do
          alive[i] = slots[i % INSTANCES + 1].place.instance:exec { "cat", stdin = bough.PIPE }
        end
        local live = 0
        for _, slot in ipairs(slots) do live = live + slot.place.instance.live end
        assert.equal(PROCESSES, live)
        for i, process in ipairs(alive) do process.stdin:write(i, "\n") end
        for i, process in ipairs(alive) do assert.equal(i, process.stdout:read "n") end

        local due = system.monotime() + SECONDS

        local function worker(i)
          local first = slots[i % INSTANCES + 1].place
          alive[i].stdin:close()
          local good, code = pcall(alive[i].wait, alive[i])
          if not (good and code == 0 or first.ended) then error("cat: " .. tostring(code), 0) end
          alive[i] = nil
          while system.monotime() < due do
            local place = slots[random(INSTANCES)].place
            local name = names[random(#names)]
            doing[i] = name
            local right, what
            good, right, what = pcall(actions[name], place.instance)
            if not good then
              local problem = right
              local fits = bough.is_error(problem) and place.ended and allowed_when_ended[problem.kind]
              if not fits then error(("%s: %s"):format(name, tostring(problem)), 0) end
            elseif not right and not place.ended then
              error(("%s: %s"):format(name, tostring(what)), 0)
            end
            counts[name] = (counts[name] or 0) + 1
            doing[i] = nil
          end
        end

        -- Commits, stops and closes sandboxes under them.
        local function disturber()
          while system.monotime() < due do
            local slot = slots[random(INSTANCES)]
            local place = slot.place
            local way = random(10)
            if way <= 6 then
              local good, problem = pcall(place.instance.commit, place.instance)
              if good then
                commits = commits + 1
              elseif not (place.ended or problem.kind == "busy") then
                error("commit: " .. tostring(problem), 0)
              end
            elseif not place.ended then
              place.ended = true
              ends = ends + 1
              if way == 7 then place.instance:stop(random() * 0.1) end
              if way == 8 then pcall(bough.deadline, random() * 0.05, place.instance.stop, place.instance, 5) end
              if way == 9 then bough.spawn(pcall, place.instance.commit, place.instance) end
              place.instance:close()
              boot(slot)
            end
            bough.sleep(random() * 0.02)
          end
        end

        local function collector()
          while system.monotime() < due do
            collectgarbage()
            bough.sleep(0.5)
          end
        end

        local good, problem = pcall(bough.scope, function(scope)
          for i = 1, PROCESSES do scope:spawn(worker, i) end
          for _ = 1, 25 do scope:spawn(disturber) end
          scope:spawn(collector)
        end)
        if not good then
          local stuck = {}
          for i, name in pairs(doing) do stuck[#stuck + 1] = i .. " " .. name end
          error(("%s (BOUGH_TEST_SEED=%d; under way: %s)")
            :format(tostring(problem), SEED, table.concat(stuck, ", ", 1, math.min(#stuck, 40))), 0)
        end
      end)

      local total = 0
      for _, name in ipairs(names) do
        assert.is_true((counts[name] or 0) > 0, name .. " was never tried")
        total = total + counts[name]
      end
      assert.is_true(commits > 0 and ends > 0)
      io.write(("# %d processes, %d commits, %d sandboxes ended\n"):format(total + PROCESSES, commits, ends))

      -- the sandboxes are empty, whatever was done to their processes
      collectgarbage()
      collectgarbage()
      for _, slot in ipairs(slots) do
        fixture.until_true("the end of all processes", function() return slot.place.instance.live == 0 end)
        assert.equal(0, slot.place.instance:exec("test -z \"$(pidof cat sleep dd seq tee wc)\""):wait())
        slot.place.instance:close()
        slot.place = nil
      end
      assert.equal("still there\n", base:run("echo still there").stdout)
      collectgarbage()
      collectgarbage()

      local function back_to(what, now, limit)
        local last
        local good = pcall(fixture.until_true, what, function()
          last = now()
          return last == nil or last <= limit
        end)
        assert.is_true(good, ("%s: %s, before it were %s"):format(what, last, limit))
      end
      back_to("the keeper's processes", function() return (family(keeper)) end, before.family + BLANK)
      back_to("zombies", function() return select(2, family(keeper)) end, 0)
      if before.keeper then
        back_to("the keeper's descriptors", function() return descriptors(keeper) end, before.keeper + BLANK)
      end
      back_to("our descriptors", function() return descriptors "self" end, before.own)
    end)
end)
