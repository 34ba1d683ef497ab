--- Commands and tasks: the same call in every context, several at once, cancellation.

local bough = require "bough"
local fixture = require "spec.engine.fixture"
local raises = require "spec.support.raises"
local system = require "system"

return function(open)
  describe("commands and tasks:", function()
    local box, base

    setup(function()
      box = open()
      base = box.images:use "busybox"
    end)

    teardown(function() box:close() end)

    -- The body that every context runs: results, outputs, a check that fails, files, a session.
    local function body()
      local image = base:run "echo hello; echo oops >&2; echo kept >/kept; exit 5"
      local ok, problem = pcall(image.run, image, { "false", check = true })
      local session <close> = image:session()
      session:run "cat /kept"
      return table.concat({
        image.stdout, image.stderr, image.exit_code, tostring(ok), problem.kind, image:read "/kept",
        session.stdout, #image:ls "/",
      }, "|")
    end

    local expected

    setup(function() expected = body() end)

    it("the same results on the main thread and in a task", function()
      assert.match("^hello\n|oops\n|5|false|exit|kept\n|kept\n|%d+$", expected)
      assert.equal(expected, bough.run(body))
      assert.equal(expected, bough.spawn(body):wait())
    end)

    it("the same results in a coroutine that is nobody's task", function()
      local values = {}
      local generator = coroutine.wrap(function()
        coroutine.yield "first"
        coroutine.yield(body())
        return "last"
      end)
      for _ = 1, 3 do values[#values + 1] = generator() end
      assert.same({ "first", expected, "last" }, values)
    end)

    it("the same results in a generator inside a task", function()
      local values = bough.run(function()
        local all = {}
        for value in coroutine.wrap(function()
          coroutine.yield "first"
          coroutine.yield(body())
          coroutine.yield "last"
        end) do
          all[#all + 1] = value
        end
        return all
      end)
      assert.same({ "first", expected, "last" }, values)
    end)

    it("the same results where nothing can yield: a comparator, a callback, a metamethod", function()
      bough.run(function()
        local seen
        table.sort({ 1, 2 }, function(a, b)
          seen = seen or body()
          return a < b
        end)
        assert.equal(expected, seen)
        assert.equal(expected, (("x"):gsub("x", body)))
        assert.equal(expected, tostring(setmetatable({}, { __tostring = body })))
      end)
    end)

    it("the same results in a closer that coroutine.close runs", function()
      local function check()
        local seen
        local co = coroutine.create(function()
          local _ <close> = setmetatable({}, { __close = function() seen = body() end })
          coroutine.yield()
        end)
        coroutine.resume(co)
        assert.is_true(coroutine.close(co))
        assert.equal(expected, seen)
      end
      check()
      bough.run(check)
    end)

    it("several run at the same time", function()
      local listener, mark = fixture.listener(), fixture.long_time()
      local runs, waiters = {}, {}
      for i, word in ipairs { "one", "two", "three", "four", "five" } do
        runs[i] = base:start {
          shell = ("echo %s; sleep %s"):format(word, mark), stdout = listener.sink, text = "lines",
        }
        waiters[i] = bough.spawn(pcall, runs[i].wait, runs[i])
      end
      for _, word in ipairs { "one", "two", "three", "four", "five" } do listener.seen(word) end
      for i, run in ipairs(runs) do
        assert.equal("executing", run.state)
        run:close()
        assert.is_false((waiters[i]:wait()))
      end
      fixture.gone("sleep " .. mark)
    end)

    it("two that take a second take one second together", function()
      local started = system.monotime()
      local images = bough.all {
        function() return base:run { "sleep", "1" } end,
        function() return base:run { "sleep", "1" } end,
        function()
          table.sort({ 1, 2 }, function(a, b)
            base:run { "sleep", "0.3" }
            return a < b
          end)
          return "sorted"
        end,
      }
      assert.is_true(system.monotime() - started < 1.9)
      assert.equal(0, images[1].exit_code)
      assert.equal("sorted", images[3])
    end)

    it("dozens from one image at once, each by itself", function()
      local list = {}
      for i = 1, 40 do
        list[i] = function() return base:run(("echo %d >/n; cat /n; ls / | wc -l"):format(i)) end
      end
      local images = bough.all(list)
      local count = images[1].stdout:match "\n(%d+)"
      local seen = {}
      for i, image in ipairs(images) do
        assert.equal(("%d\n%s\n"):format(i, count), image.stdout)
        assert.equal(i .. "\n", image:read "/n")
        assert.is_nil(seen[image.uuid])
        seen[image.uuid] = true
      end
    end)

    it("the main thread's wait lets tasks go on", function()
      local other
      local task = bough.spawn(function() other = base:run("echo other").stdout end)
      base:run { "sleep", "0.2" }
      task:wait()
      assert.equal("other\n", other)
    end)

    it("a frame loop drives them without ever waiting", function()
      local tasks, longest, frames = {}, 0, 0
      for i = 1, 6 do
        tasks[i] = bough.spawn(function()
          local session <close> = base:session()
          for j = 1, 3 do session:run(("echo %d.%d >>/log"):format(i, j)) end
          return session:read "/log"
        end)
      end
      local function unfinished()
        for _, task in ipairs(tasks) do
          if task.status ~= "done" then return true end
        end
      end
      local give_up = system.monotime() + 60
      while unfinished() and system.monotime() < give_up do
        local started = system.monotime()
        bough.step(0)
        longest = math.max(longest, system.monotime() - started)
        frames = frames + 1
        system.sleep(0.001) -- the rest of the frame
      end
      for i, task in ipairs(tasks) do
        assert.equal(("%d.1\n%d.2\n%d.3\n"):format(i, i, i), task:wait())
      end
      assert.is_true(frames > 3)
      io.write(("# longest step(0) of %d: %.2f ms\n"):format(frames, longest * 1000))
    end)

    describe("cancelling", function()
      it("a task in mid-run kills the command, runs the closers and leaves no image", function()
        local mark, listener = fixture.long_time(), fixture.listener()
        local before = #box.images:list { number = math.huge }
        local closed = {}
        local task = bough.spawn(function()
          local _ <close> = setmetatable({}, { __close = function(_, problem)
            closed[#closed + 1] = problem.kind
            closed[#closed + 1] = base:run({ "echo", "from a closer", disposable = true }).stdout
          end })
          base:run { shell = "echo ready; sleep " .. mark, stdout = listener.sink, text = "lines" }
          closed[#closed + 1] = "not reached"
        end)
        listener.seen "ready"
        assert.equal(1, #fixture.processes("sleep " .. mark) > 0 and 1 or 0)
        task:cancel()
        raises("cancelled", task.wait, task)
        assert.same({ "cancelled", "from a closer\n" }, closed)
        assert.equal("cancelled", task.status)
        fixture.gone("sleep " .. mark)
        assert.equal(before, #box.images:list { number = math.huge })
      end)

      it("a task whose command has not started yet starts nothing", function()
        local mark = fixture.long_time()
        local task = bough.spawn(function() base:run { "sleep", mark } end)
        bough.step(0)
        task:cancel()
        raises("cancelled", task.wait, task)
        fixture.gone("sleep " .. mark)
      end)

      it("one waiter leaves the run to the others", function()
        local image = base:start "sleep 0.3; echo done"
        local one, two = bough.spawn(image.wait, image), bough.spawn(image.wait, image)
        bough.step(0)
        one:cancel()
        raises("cancelled", one.wait, one)
        assert.equal(image, two:wait())
        assert.equal("done\n", image.stdout)
      end)

      it("comes with a deadline, which kills the command too", function()
        local mark = fixture.long_time()
        raises("timeout", bough.deadline, 0.2, function() base:run { "sleep", mark } end)
        fixture.gone("sleep " .. mark)
        assert.equal(0, bough.deadline(60, function() return base:run("true").exit_code end))
      end)
    end)

    describe("of several", function()
      it("the first failure cancels the others, kills their commands, and is raised", function()
        local mark = fixture.long_time()
        local listener = fixture.listener()
        local problem = raises("exit", bough.all, {
          function()
            base:run { shell = "echo ready; sleep " .. mark, stdout = listener.sink, text = "lines" }
          end,
          function()
            listener.seen "ready"
            base:run { shell = "exit 9", check = true }
          end,
          function() base:run { "sleep", mark } end,
        })
        assert.equal(9, problem.result.exit_code)
        fixture.gone("sleep " .. mark)
      end)

      it("settle waits for all and tells each outcome", function()
        local outcomes = bough.all {
          function() return base:run("echo ok").stdout end,
          function() base:run { "false", check = true } end,
          settle = true,
        }
        assert.same({ ok = true, value = "ok\n" }, outcomes[1])
        assert.is_false(outcomes[2].ok)
        assert.equal("exit", outcomes[2].err.kind)
      end)

      it("the first to finish wins a race, and the others are killed", function()
        local mark = fixture.long_time()
        local winner = bough.race {
          function() base:run { "sleep", mark } return "slow" end,
          function() base:run { "true" } return "fast" end,
        }
        assert.equal("fast", winner)
        fixture.gone("sleep " .. mark)
      end)

      it("a scope that is left by an error leaves nothing running", function()
        local mark, listener = fixture.long_time(), fixture.listener()
        local ok, problem = pcall(bough.scope, function(scope)
          scope:spawn(function()
            base:run { shell = "echo ready; sleep " .. mark, stdout = listener.sink, text = "lines" }
          end)
          listener.seen "ready"
          error("out", 0)
        end)
        assert.is_false(ok)
        assert.equal("out", problem)
        fixture.gone("sleep " .. mark)
      end)
    end)

    it("closing the engine ends what waits with kind closed or cancelled, and leaves nothing", function()
      local other = open()
      local image = other.images:use "busybox"
      local mark, listener = fixture.long_time(), fixture.listener()
      local task = bough.spawn(function()
        image:run { shell = "echo ready; sleep " .. mark, stdout = listener.sink, text = "lines" }
      end)
      listener.seen "ready"
      other:close()
      local ok, problem = pcall(task.wait, task)
      assert.is_false(ok)
      assert.is_true(problem.kind == "closed" or problem.kind == "cancelled", problem.kind)
      assert.equal(0, #fixture.processes("sleep " .. mark))
    end)
  end)
end
