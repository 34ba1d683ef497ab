--- The sandboxes of live processes: instances that are booted, and those that sessions and images open as needed.

local bough = require "bough"
local fixture = require "spec.engine.fixture"
local places = require "spec.support.places"
local raises = require "spec.support.raises"
local system = require "system"

return function(open, lacks)
  local box, base

  local function everywhere(name, body)
    for _, place in ipairs(places) do
      it(name .. ", " .. place.name, function() place.call(body) end)
    end
  end

  -- One that ends, with `code`, when its stdin does; it has done `before`.
  local function gate(place, before, code)
    local process = place:popen {
      shell = ("%s\necho ready; cat >/dev/null; exit %d"):format(before or "", code or 0), stdin = bough.PIPE,
    }
    assert.equal("ready", process.stdout:read())
    return process
  end

  local function output(place, line)
    local process = place:popen(line)
    local text = process.stdout:read "a"
    process:wait()
    return text
  end

  describe("an instance", function()
    setup(function()
      box = open()
      base = box.images:use "busybox"
    end)

    teardown(function() box:close() end)

    local instance

    before_each(function() instance = base:boot() end)

    after_each(function() instance:close() end)

    everywhere("tells what it is", function()
      local own <close> = base:boot()
      assert.equal("running", own.state)
      assert.equal(0, own.live)
      assert.equal(base, own.image)
      assert.equal(base.uuid, own.uuid)
      assert.is_false(own.timed_out)
      assert.match("^instance of image .*busybox.* 0 processes$", tostring(own))
      local process = gate(own)
      assert.equal(1, own.live)
      assert.match("1 process$", tostring(own))
      process.stdin:close()
      process:wait()
      assert.equal(0, own.live)
      own:stop()
      assert.equal("stopped", own.state)
      own:close()
      assert.equal("closed", own.state)
      for _, text in ipairs { "exec", "commit", "stop" } do raises("closed", own[text], own, "true") end
      own:close()
      raises("invalid", function() own.state = "running" end)
      raises("invalid", own.exec, base, "true")
    end)

    it("is listed by its engine until it is closed", function()
      local function listed()
        for _, one in ipairs(box.instances:list()) do
          if one == instance then return true end
        end
        return false
      end
      assert.is_true(listed())
      instance:stop()
      assert.is_true(listed())
      instance:close()
      assert.is_false(listed())
    end)

    it("hosts several processes at once, which share its files and see each other", function()
      local one <close> = gate(instance, "echo shared >/file")
      assert.equal("shared\n", output(instance, "cat /file"))
      assert.equal(0, instance:exec({ "kill", "-0", tostring(one.pid) }):wait())
      assert.is_nil(one:poll())
      one.stdin:close()
      one:wait()
      assert.equal("shared\n", output(instance, "cat /file")) -- though for a moment there was none
      raises("not_found", base.read, base, "/file")
    end)

    it("is alone: another one of the same image sees nothing of it", function()
      local other <close> = base:boot()
      local process <close> = gate(instance, "echo x >/file")
      assert.equal(1, other:exec({ "test", "-e", "/file" }):wait())
      assert.match("^%d+\n$", output(instance, "pidof cat"))
      assert.equal("", output(other, "pidof cat"))
      assert.is_nil(process:poll())
    end)

    it("has what it was given for all its processes, which may say otherwise", function()
      local own <close> = base:boot {
        env = { A = "1", B = "2" }, cwd = "/usr", user = "5", hostname = "my.box",
        files = { ["/f"] = bough.bytes "content" }, truncate_output_at = 3, check = true,
      }
      assert.equal("content12/usr\n5\nmy.box\n", output(own, "cat /f; echo -n $A$B; pwd; id -u; hostname"))
      local process = own:exec { shell = "echo $A$B; pwd; id -u", env = { A = false }, cwd = "/", user = "0" }
      assert.equal("2\n/\n0\n", process.stdout:read "a")
      local captured = own:exec { "echo", "abcdef", stdout = true }
      captured:wait()
      assert.equal("abc", captured.result.stdout)
      local failing = own:exec "exit 3"
      raises("exit", failing.wait, failing)
      assert.equal(3, own:exec({ shell = "exit 3", check = false }):wait())
    end)

    it("refuses of a process what belongs to the whole", function()
      for name, value in pairs {
        files = { ["/x"] = bough.bytes "x" }, limits = { pids = 5 }, network = "host", hostname = "x",
        disposable = true, tag = "x", cache = true, on_progress = print,
      } do
        local problem = raises("invalid", instance.exec, instance, { "true", [name] = value })
        assert.match(name, problem.message, 1, true)
        assert.match("give it to boot", problem.message, 1, true)
      end
      raises("invalid", base.boot, base, { "true" })
      raises("invalid", base.boot, base, { stdin = "x" })
      raises("invalid", base.boot, base, { hostnam = "x" })
    end)

    describe("commits", function()
      if not lacks.snapshots then
        everywhere("while it runs: an image of what is there; it goes on", function()
          local own <close> = base:boot()
          local process <close> = gate(own, "echo 1 >/n")
          local one = own:commit()
          assert.equal("1\n", one:read "/n")
          assert.equal(base.uuid, one.parent_uuid)
          assert.equal("commit", one.origin)
          assert.equal("running", own.state)
          assert.is_nil(process:poll())
          own:exec("echo 2 >/n; rm /etc/passwd"):wait()
          local two = own:commit { tag = "committed", command = "by hand" }
          assert.equal("2\n", two:read "/n")
          assert.equal("1\n", one:run("cat /n").stdout)
          assert.equal("2\n", two:run("cat /n; test -e /etc/passwd || exit 4").stdout)
          assert.equal(base.uuid, two.parent_uuid)
          assert.not_equal(one.uuid, two.uuid)
          assert.equal("by hand", two.command)
          assert.equal("committed", two.tag)
          assert.equal(two, box.images:get "committed")
          box.images:get "committed":untag()
          raises("state", function() return one.exit_code end)
        end)
      end

      if not lacks.snapshots then
        it("one moment: no write is in it that came after one that is not", function()
          local process <close> = instance:exec(
            "echo 0 >/a; echo 0 >/b; echo r; i=0; while :; do i=$((i+1)); echo $i >/a; echo $i >/b; done")
          process.stdout:read()
          for _ = 1, 5 do
            local image = instance:commit()
            -- a file that is being rewritten may be found empty
            local a, b = tonumber(image:read "/a") or 0, tonumber(image:read "/b") or 0
            assert.is_true(a == 0 or b == 0 or a == b or a == b + 1, ("a is %d, b is %d"):format(a, b))
            local file = "/after." .. image.uuid
            instance:exec("echo x >" .. file):wait()
          end
          assert.is_nil(process:poll())
        end)
      end

      if not lacks.snapshots then
        it("nothing, when nothing has changed, as an image of its own", function()
          local before = box:info()
          local image = instance:commit()
          assert.not_equal(base.uuid, image.uuid)
          assert.equal(base.uuid, image.parent_uuid)
          assert.equal(before.layers, box:info().layers)
          assert.same(fixture.names(base, "/"), fixture.names(image, "/"))
        end)
      end

      if not lacks.snapshots then
        it("for several who ask at once, or tells them that it is busy", function()
          instance:exec("echo x >/x"):wait()
          local list = { settle = true }
          for i = 1, 4 do list[i] = function() return instance:commit():read "/x" end end
          local good = 0
          for _, outcome in ipairs(bough.all(list)) do
            if outcome.ok then
              assert.equal("x\n", outcome.value)
              good = good + 1
            else
              assert.equal("busy", outcome.err.kind)
            end
          end
          assert.is_true(good > 0)
        end)
      end

      if not lacks.snapshots then
        it("lets a process be that somebody has stopped", function()
          local process <close> = gate(instance)
          process:send_signal "STOP"
          instance:commit()
          process.stdin:close()
          raises("timeout", process.wait, process, 0.05)
          process:send_signal "CONT"
          assert.equal(0, process:wait())
        end)
      end

      it("after stop what there was at the end, and again the same", function()
        instance:exec("echo x >/x"):wait()
        instance:stop()
        local image = instance:commit()
        assert.equal("x\n", image:read "/x")
        assert.equal(base.uuid, image.parent_uuid)
        assert.equal(image, instance:commit())
        assert.equal("at-last", instance:commit({ tag = "at-last" }).tag)
        assert.equal("x\n", image:run("cat /x").stdout)
      end)

      it("nothing of what is disposable, or after close", function()
        local own <close> = base:boot { disposable = true }
        assert.equal(0, own:exec("echo x >/x"):wait())
        raises("disposed", own.commit, own)
        own:stop()
        raises("disposed", own.commit, own)
        local before = #box.images:list { number = math.huge }
        instance:exec("echo x >/x"):wait()
        instance:stop()
        instance:close()
        raises("closed", instance.commit, instance)
        if not lacks.removal then assert.equal(before, #box.images:list { number = math.huge }) end
      end)

      it("and refuses what is no name", function()
        raises("invalid", instance.commit, instance, { tag = "two words" })
        raises("invalid", instance.commit, instance, { name = "x" })
        raises("invalid", instance.commit, instance, { command = 7 })
      end)

      if not lacks.snapshots then
        it("again after a commit that was cancelled", function()
          local process <close> = gate(instance, "echo x >/x")
          for steps = 0, 8 do
            local task = bough.spawn(instance.commit, instance)
            for _ = 1, steps do bough.step(0) end
            task:cancel()
            local ok, problem = pcall(task.wait, task)
            assert.is_true(ok or problem.kind == "cancelled", tostring(problem))
          end
          local image
          fixture.until_true("a commit", function()
            local ok, problem = pcall(instance.commit, instance)
            assert.is_true(ok or problem.kind == "busy", tostring(problem))
            image = ok and problem
            return ok
          end)
          assert.equal("x\n", image:read "/x")
          process.stdin:close()
          assert.equal(0, process:wait())
        end)
      end
    end)

    describe("stops", function()
      everywhere("its processes by SIGTERM", function()
        local own <close> = base:boot()
        local handling = own:exec "trap 'echo bye >/bye; exit 3' TERM; echo ready; sleep 900 & wait"
        local plain = own:exec { "sleep", "900" }
        assert.equal("ready", handling.stdout:read())
        assert.equal(own, own:stop())
        assert.equal("stopped", own.state)
        assert.equal(0, own.live)
        assert.same({ 3, 143 }, { handling:wait(), plain:wait() })
        assert.equal("bye\n", own:commit():read "/bye")
      end)

      it("and who does not care, after the grace, by SIGKILL", function()
        local stubborn = instance:exec "trap '' TERM; echo ready; while :; do sleep 900; done"
        assert.equal("ready", stubborn.stdout:read())
        local started = system.monotime()
        instance:stop(0.2)
        local took = system.monotime() - started
        assert.is_true(took >= 0.2 and took < 5, "it took " .. took)
        assert.equal(137, stubborn:wait())
      end)

      it("at once with a grace of 0", function()
        local process = instance:exec "trap 'echo x >/x' TERM; echo ready; sleep 900 & wait; sleep 900"
        assert.equal("ready", process.stdout:read())
        instance:stop(0)
        assert.equal(137, process:wait())
        raises("not_found", instance:commit().read, instance:commit(), "/x")
      end)

      it("for good: no process starts any more, and again it does nothing", function()
        instance:stop()
        instance:stop()
        local problem = raises("closed", instance.exec, instance, "true")
        assert.match("the sandbox has ended", problem.message, 1, true)
        for _, wrong in ipairs { -1, 0 / 0, "now" } do raises("invalid", instance.stop, instance, wrong) end
      end)

      it("later, when a deadline cuts its patience short", function()
        local process = instance:exec "trap '' TERM; echo ready; while :; do sleep 900; done"
        assert.equal("ready", process.stdout:read())
        raises("timeout", bough.deadline, 0.05, instance.stop, instance, 100)
        instance:stop(0)
        assert.equal("stopped", instance.state)
        assert.equal(137, process:wait())
      end)
    end)

    describe("ends with all that is in it", function()
      local function busy(place)
        local mark = fixture.long_time()
        local process = place:popen(("setsid sleep %s & (sleep %s &) ; echo ready; wait"):format(mark, mark))
        assert.equal("ready", process.stdout:read())
        return process, "sleep " .. mark
      end

      it("when it is closed", function()
        local process, mark = busy(instance)
        instance:close()
        assert.equal(137, process:wait())
        fixture.gone(mark)
      end)

      everywhere("when its block ends", function()
        local mark
        do
          local own <close> = base:boot()
          mark = select(2, busy(own))
        end
        fixture.gone(mark)
      end)

      it("when it is collected", function()
        local mark = select(2, busy(base:boot()))
        collectgarbage()
        collectgarbage()
        fixture.gone(mark)
      end)

      it("but not while one of its processes is wanted", function()
        local process = gate(base:boot())
        collectgarbage()
        collectgarbage()
        process.stdin:write "x"
        process.stdin:close()
        assert.equal(0, process:wait())
      end)

      it("when its engine is closed, and whoever waits hears of it", function()
        local other = open()
        local own = other.images:use "busybox":boot()
        local process, mark = busy(own)
        local waiter = bough.spawn(pcall, process.wait, process)
        local reader = bough.spawn(pcall, process.stdout.read, process.stdout, "a")
        for _ = 1, 10 do bough.step(0) end
        other:close()
        local ok, problem = waiter:wait()
        assert.is_true(ok or problem.kind == "closed" or problem.kind == "cancelled", tostring(problem))
        assert.is_true((reader:wait()))
        assert.equal("closed", own.state)
        assert.equal(0, #fixture.processes(mark))
      end)

      it("at its time limit, and what it left can be committed", function()
        local own <close> = base:boot { timeout = 0.3 }
        local process = gate(own, "echo x >/x")
        assert.equal(137, process:wait())
        fixture.until_true("its end", function() return own.state == "stopped" end)
        assert.is_true(own.timed_out)
        raises("closed", own.exec, own, "true")
        assert.equal("x\n", own:commit():read "/x")
      end)
    end)
  end)

  describe("processes of a session", function()
    local session

    setup(function()
      box = open()
      base = box.images:use "busybox"
    end)

    teardown(function() box:close() end)

    before_each(function() session = base:session() end)

    after_each(function() session:close() end)

    everywhere("move it when the last has ended, and wait returns after that", function()
      local s <close> = base:session()
      local process = s:popen "echo x >/x; exit 3"
      assert.equal(3, process:wait())
      assert.equal(process.image.uuid, s.uuid)
      assert.equal("x\n", s:read "/x")
      assert.equal(base.uuid, s:image().parent_uuid)
      assert.equal(3, s.exit_code)
      assert.equal("succeeded", s.state)
      local history = s:history()
      assert.same({ 2, "popen", "echo x >/x; exit 3", 3 },
        { #history, history[2].op, history[2].command, history[2].exit_code })
      s:rollback()
      assert.equal(base.uuid, s.uuid)
    end)

    everywhere("share one sandbox", function()
      local s <close> = base:session()
      local one = gate(s, "echo 1 >/one")
      local two = gate(s, "cat /one >/two", 4)
      assert.equal(0, s:popen({ "kill", "-0", tostring(one.pid) }):wait())
      one.stdin:close()
      assert.equal(0, one:wait())
      assert.is_nil(one.image)
      assert.equal(base.uuid, s.uuid)
      assert.equal("executing", s.state)
      two.stdin:close()
      assert.equal(4, two:wait())
      assert.equal(s.uuid, two.image.uuid)
      assert.equal("1\n1\n", s:read "/one" .. s:read "/two")
      assert.equal(2, #s:history())
      assert.equal(0, s:popen("test -e /two"):wait()) -- the next sandbox stands where the session does
    end)

    it("keep it busy, as a run does; looking, branching and booting go on", function()
      local process = gate(session, "echo x >/x")
      for name, argument in pairs {
        run = "true", start = "true", apply_files = { ["/f"] = bough.bytes "x" }, checkout = base,
        rollback = 1, tag_as = "busy-tag",
      } do
        raises("busy", session[name], session, argument)
      end
      raises("busy", session.untag, session)
      raises("not_found", session.read, session, "/x")
      local twin <close> = session:branch()
      assert.equal(1, twin:run("test -e /x").exit_code)
      local instance <close> = session:boot()
      assert.equal(1, instance:exec({ "test", "-e", "/x" }):wait())
      assert.match("executing", tostring(session), 1, true)
      process.stdin:close()
      process:wait()
      assert.equal("x\n", session:run("cat /x").stdout)
    end)

    it("need not be waited for: the next step finds what they left", function()
      local function ended()
        local process = session:popen "cat /n; echo x >>/n"
        process.stdout:read "a"
        fixture.until_true("its end", function() return process:poll() end)
      end
      ended()
      assert.equal("x\n", session:run("cat /n").stdout)
      ended()
      assert.equal("x\nx\n", session:read "/n")
      ended()
      assert.equal("x\nx\nx\n", output(session, "cat /n"))
      ended()
      session:wait()
      session:rollback()
      assert.equal("x\nx\nx\n", session:read "/n")
    end)

    it("are waited for by the session too", function()
      local process = session:popen "echo x >/x; sleep 0.05"
      session:wait()
      assert.equal("x\n", session:read "/x")
      assert.equal(0, process:wait())
    end)

    it("leave it where it was when all of them were given up", function()
      for _ = 1, 2 do
        do
          local one <close> = gate(session, "echo x >/x")
          local two <close> = gate(session)
          assert.is_nil(one:poll() or two:poll())
        end
        assert.equal(1, session:run("test -e /x").exit_code)
        session:rollback()
        assert.equal(base.uuid, session.uuid)
      end
    end)

    it("leave it where it was when all were stopped by a time limit, with an image to look into", function()
      local process = session:popen { shell = "echo x >/x; sleep 900", timeout = 0.1 }
      assert.equal(137, process:wait())
      assert.is_true(process.timed_out)
      assert.equal("x\n", process.image:read "/x")
      assert.equal(base.uuid, session.uuid)
      assert.equal(1, session:run("test -e /x").exit_code)
    end)

    it("move it when one of them came to its end, killed or not", function()
      local kept = gate(session)
      do
        local _ <close> = gate(session, "echo x >/x")
      end
      kept:kill()
      assert.equal(137, kept:wait())
      assert.equal("x\n", session:read "/x")
    end)

    it("leave it usable when they cannot start", function()
      raises("not_found", session.popen, session, { "no-such-program" })
      raises("not_found", session.popen, session, { "true", cwd = "/nowhere" })
      assert.equal(base.uuid, session.uuid)
      local kept = gate(session, "echo x >/x")
      raises("not_found", session.popen, session, { "no-such-program" })
      kept.stdin:close()
      kept:wait()
      assert.equal("x\n", session:read "/x")
      assert.equal(2, #session:history())
    end)

    it("with check raise, and the session stays where it was", function()
      local checked <close> = base:session { check = true }
      local process = checked:popen "echo x >/x; exit 3"
      local problem = raises("exit", process.wait, process)
      assert.equal(3, problem.result.exit_code)
      assert.equal(0, checked:popen("true"):wait())
    end)

    it("get its defaults; the first one says what its sandbox is like", function()
      local s <close> = base:session { cwd = "/usr", env = { A = "1" }, user = "5", hostname = "my.box" }
      local first = s:popen {
        shell = "pwd; echo $A; id -u; hostname; cat /f; cat", stdin = bough.PIPE, env = { A = "2" }, tag = "popened",
        files = { ["/f"] = bough.bytes "content\n" },
      }
      assert.equal("/usr\n2\n5\nmy.box\ncontent\n", first.stdout:read(4 + 1 + 2 + 2 + 7 + 8))
      assert.equal("/usr\n1\n", output(s, "pwd; echo $A"))
      raises("invalid", s.popen, s, { "true", hostname = "other" })
      raises("invalid", s.popen, s, { "true", files = { ["/g"] = bough.bytes "x" } })
      first.stdin:close()
      first:wait()
      assert.equal("popened", s.tag)
      assert.equal("content\n", s:read "/f")
    end)

    it("end with it", function()
      local process, mark
      do
        local s <close> = base:session()
        mark = fixture.long_time()
        process = s:popen("echo ready; sleep " .. mark)
        process.stdout:read()
      end
      fixture.gone("sleep " .. mark)
      local ok, problem = pcall(process.wait, process)
      assert.is_true(ok and problem == 137 or problem.kind == "cancelled", tostring(problem))
    end)

    it("of an image leave an image, and the one they ran in stays as it was", function()
      local one, two = base:popen "echo 1 >/n; exit 2", base:popen "test -e /n"
      assert.same({ 2, 1 }, { one:wait(), two:wait() })
      assert.equal("1\n", one.image:read "/n")
      assert.equal(base, one.image:parent())
      assert.equal(2, one.image.exit_code)
      assert.equal("1\n", one.image:run("cat /n").stdout)
      raises("not_found", base.read, base, "/n")
      local thrown = base:popen { shell = "echo x >/x", disposable = true }
      assert.equal(0, thrown:wait())
      assert.is_nil(thrown.image)
    end)

    it("in twenty sessions at once do not disturb each other", function()
      local list = {}
      for i = 1, 20 do
        list[i] = function()
          local s <close> = base:session()
          for step = 1, 2 do
            local one = s:popen(("echo %d.%d >>/log"):format(i, step))
            local two = s:popen { "cat", stdin = bough.PIPE }
            two.stdin:write(i):close()
            assert(two.stdout:read "a" == tostring(i))
            one:wait()
            two:wait()
          end
          return s:read "/log"
        end
      end
      for i, log in ipairs(bough.all(list)) do assert.equal(("%d.1\n%d.2\n"):format(i, i), log) end
    end)
  end)
end
