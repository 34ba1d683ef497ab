local bough = require "bough"
local fake = require "spec.support.fake_engine"
local full = require "spec.support.fake_full"
local raises = require "spec.support.raises"

describe("bough.session", function()
  local box, driver, base, session

  before_each(function()
    box, driver = fake.open()
    base = fake.base(box)
    session = base:session()
  end)

  after_each(function() box:close() end)

  describe("run", function()
    it("moves along; a later run sees the files of an earlier one", function()
      local one = session:run "write /a 1;echo one"
      assert.equal(one.uuid, session.uuid)
      local two = session:run "cat /a"
      assert.equal("1", two.stdout)
      assert.equal("one\n", one.stdout)
      assert.equal("1", session.stdout)
      assert.equal(two, session:image())
      assert.equal(one, two:parent())
    end)

    it("moves after a non-zero exit: that is a result", function()
      local failed = session:run "exit 3"
      assert.equal(3, session.exit_code)
      assert.equal(failed.uuid, session.uuid)
    end)

    it("stays after a failed check, with the result to look at", function()
      session:run "write /a 1"
      local before = session.uuid
      raises("exit", session.run, session, "warn broken;exit 1", { check = true })
      assert.equal(before, session.uuid)
      assert.equal(1, session.exit_code)
      assert.equal("broken\n", session.stderr)
      assert.equal("1", session:run("cat /a").stdout)
    end)

    it("stays after a timeout, whose image is there to look into", function()
      local late = session:run("write /a 1;sleep 5", { timeout = 0.02 })
      assert.is_true(late.timed_out)
      assert.equal("1", late:read "/a")
      assert.equal(base.uuid, session.uuid)
      assert.is_true(session.timed_out)
      assert.equal(0, session:run("noop").exit_code)
    end)

    it("stays after a disposable run", function()
      local gone = session:run { shell = "echo x", disposable = true }
      assert.is_nil(gone.uuid)
      assert.equal(base.uuid, session.uuid)
      assert.equal("x\n", session.stdout)
      session:run "noop"
    end)

    it("stays after a run that could not start or broke", function()
      raises("not_found", session.run, session, "nostart")
      raises("io", session.run, session, "stuck")
      raises("invalid", session.run, session, { "x", timout = 1 })
      raises("invalid", session.run, session)
      assert.equal(base.uuid, session.uuid)
      assert.equal("pulled", session.state)
      session:run "noop"
    end)

    it("stays after a cancellation, with nothing left running", function()
      local task = bough.spawn(function() session:run "sleep 60" end)
      bough.sleep(0.02)
      assert.equal("executing", session.state)
      task:cancel()
      raises("cancelled", task.wait, task)
      assert.equal(0, driver.live)
      assert.equal(base.uuid, session.uuid)
      session:run "noop"
    end)

    it("suspends its task, so that others go on", function()
      local order = {}
      bough.run(function()
        local other = base:session()
        local slow = bough.spawn(function() session:run "sleep 0.05" order[#order + 1] = "slow" end)
        local fast = bough.spawn(function() other:run "sleep 0.01" order[#order + 1] = "fast" end)
        slow:wait()
        fast:wait()
      end)
      assert.same({ "fast", "slow" }, order)
    end)

    it("gives the same on the main thread, in a task, and in a generator within a task", function()
      local function script()
        local own = base:session()
        own:run "write /x 7"
        return own:run("cat /x").stdout
      end
      local function generated() return coroutine.wrap(script)() end
      assert.equal("7", script())
      assert.equal("7", bough.run(script))
      assert.equal("7", bough.run(generated))
    end)
  end)

  describe("when busy", function()
    it("refuses a second run with busy", function()
      bough.run(function()
        local first = bough.spawn(function() return session:run "sleep 0.03;echo first" end)
        bough.sleep(0.005)
        raises("busy", session.run, session, "noop")
        raises("busy", session.start, session, "noop")
        raises("busy", session.rollback, session)
        raises("busy", session.checkout, session, base)
        raises("busy", session.tag_as, session, "x")
        assert.equal(base.uuid, session.uuid)
        assert.equal("first\n", first:wait().stdout)
      end)
      assert.equal("first\n", session.stdout)
    end)

    it("lines up with queue = true, in order", function()
      local order = {}
      bough.run(function()
        local tasks = {}
        for i = 1, 4 do
          tasks[i] = bough.spawn(function()
            session:run("sleep 0.005;write /n" .. i .. " x", { queue = true })
            order[#order + 1] = i
          end)
        end
        for _, task in ipairs(tasks) do task:wait() end
      end)
      assert.same({ 1, 2, 3, 4 }, order)
      assert.equal(4, #session:ls "/" - 1)
      assert.equal(5, #session:history())
    end)

    it("lines up by default in a session that was made so", function()
      local queued = base:session { queue = true }
      bough.run(function()
        local first = bough.spawn(function() queued:run "sleep 0.01;write /a 1" end)
        bough.sleep(0.002)
        assert.equal("1", queued:run("cat /a").stdout)
        first:wait()
        bough.spawn(function() queued:run "sleep 0.01" end)
        bough.sleep(0.002)
        raises("busy", queued.run, queued, { "noop", queue = false })
      end)
    end)

    it("lets somebody in line be cancelled, and the rest go on", function()
      bough.run(function()
        local first = bough.spawn(function() session:run "sleep 0.03;write /a 1" end)
        bough.sleep(0.002)
        local second = bough.spawn(function() session:run("write /b 2", { queue = true }) end)
        local third = bough.spawn(function() return session:run("cat /a", { queue = true }) end)
        bough.sleep(0.002)
        second:cancel()
        raises("cancelled", second.wait, second)
        first:wait()
        assert.equal("1", third:wait().stdout)
      end)
      raises("not_found", session.read, session, "/b")
    end)
  end)

  describe("start", function()
    it("returns an executing image, whose wait moves the session", function()
      local started = session:start "sleep 0.01;echo x"
      assert.equal("executing", started.state)
      assert.equal("executing", session.state)
      assert.equal(base.uuid, session.uuid)
      raises("state", function() return session.stdout end)
      raises("busy", session.run, session, "noop")
      started:wait()
      assert.equal(started.uuid, session.uuid)
      assert.equal("x\n", session.stdout)
      assert.equal(2, #session:history())
      started:wait()
      assert.equal(2, #session:history())
    end)

    it("can be waited for through the session, repeatedly", function()
      raises("state", session.wait, session)
      local started = session:start "echo x"
      assert.is_true(rawequal(started, session:wait()))
      assert.is_true(rawequal(started, session:wait()))
      assert.equal("ok\n", session:run("echo ok"):wait().stdout)
    end)

    it("is settled by a run that lines up behind it", function()
      local started = session:start "sleep 0.01;write /a 1"
      assert.equal("1", session:run("cat /a", { queue = true }).stdout)
      assert.equal("succeeded", started.state)
      session:start "stuck"
      assert.equal("1", session:run("cat /a", { queue = true }).stdout)
    end)

    it("frees the session when it is closed, or fails", function()
      session:start("sleep 60"):close()
      assert.equal("pulled", session.state)
      local bad = session:start("exit 1", { check = true })
      raises("exit", bad.wait, bad)
      assert.equal(base.uuid, session.uuid)
      session:run "noop"
    end)
  end)

  describe("defaults", function()
    it("go under each run's options; env by name, false removes", function()
      local own = base:session { cwd = "/src", env = { A = "1", B = "2" }, timeout = 9, hostname = "h",
        user = "nobody", limits = { pids = 5 } }
      own:run { "noop", env = { B = false, C = 3 }, limits = { memory = "1K" } }
      local spec = driver.last_spec
      assert.equal("/src", spec.cwd)
      assert.same({ A = "1", B = false, C = "3" }, spec.env)
      assert.same({ pids = 5, memory = 1024 }, spec.limits)
      assert.equal(9.0, spec.timeout)
      own:branch():run { "noop", cwd = "/" }
      assert.equal("/", driver.last_spec.cwd)
      assert.equal("nobody", driver.last_spec.user)
      raises("invalid", base.session, base, { tag = "x" })
    end)
  end)

  describe("history", function()
    it("tells every step, oldest first, where it stands last", function()
      local one = session:run "echo 1"
      local two = session:run "exit 2"
      session:run { "noop", disposable = true }
      local steps = session:history()
      assert.equal(3, #steps)
      assert.equal(base.uuid, steps[1].uuid)
      assert.equal("session", steps[1].op)
      assert.same({ one.uuid, "echo 1", 0 }, { steps[2].uuid, steps[2].command, steps[2].exit_code })
      assert.same({ two.uuid, "exit 2", 2 }, { steps[3].uuid, steps[3].command, steps[3].exit_code })
      assert.equal(two, steps[3].image)
      assert.is_true(math.abs(steps[3].at - os.time()) < 5)
      steps[1].uuid = "x"
      assert.equal(base.uuid, session:history()[1].uuid)
    end)

    it("fetches the output of old steps again", function()
      session:run("echo " .. ("x"):rep(5000))
      session:run "noop"
      local resolved = driver.calls.resolve or 0
      local old = session:history()[2].image
      assert.equal(0, old.exit_code)
      assert.equal(resolved, driver.calls.resolve or 0)
      assert.equal(5001, #old.stdout)
      assert.equal(resolved + 1, driver.calls.resolve)
    end)
  end)

  describe("rollback", function()
    it("goes back one step, or several, as if they had not been", function()
      local one = session:run "write /a 1;echo one"
      session:run "write /a 2"
      session:run "write /a 3"
      assert.equal(session, session:rollback())
      assert.equal("2", session:read "/a")
      session:rollback(1)
      assert.equal(one.uuid, session.uuid)
      assert.equal("one\n", session.stdout)
      session:run "write /a 4"
      session:rollback(2)
      assert.equal(base.uuid, session.uuid)
      assert.equal(1, #session:history())
    end)

    it("raises state beyond the beginning and says how many steps there are", function()
      session:run "noop"
      session:run "noop"
      assert.match("has 2 steps", tostring(raises("state", session.rollback, session, 3)))
      assert.equal(3, #session:history())
      session:rollback(2)
      assert.match("has 0 steps", tostring(raises("state", session.rollback, session)))
      for _, n in ipairs { -1, 1.5, "1", {} } do raises("invalid", session.rollback, session, n) end
    end)
  end)

  describe("checkout", function()
    it("goes to an image, a uuid or a tag, as a step", function()
      local one = session:run "write /a 1"
      local other = base:run "write /b 2"
      assert.equal(session, session:checkout(other))
      assert.equal("2", session:read "/b")
      session:checkout "busybox"
      assert.equal(base.uuid, session.uuid)
      session:rollback(2)
      assert.equal(one.uuid, session.uuid)
      session:checkout(other.uuid)
      assert.equal(other.uuid, session.uuid)
    end)

    it("stays for what is unknown, disposed or another engine's", function()
      raises("not_found", session.checkout, session, "nonesuch")
      raises("disposed", session.checkout, session, base:run { "noop", disposable = true })
      local elsewhere <close> = fake.open()
      raises("invalid", session.checkout, session, fake.base(elsewhere))
      raises("invalid", session.checkout, session, {})
      raises("invalid", session.checkout, session, 5)
      assert.equal(1, #session:history())
      session:run "noop"
    end)
  end)

  describe("branch", function()
    it("starts a second session from the same point, with its past", function()
      session:run "write /a 1;echo one"
      local twin = session:branch()
      assert.equal(session.uuid, twin.uuid)
      assert.equal("one\n", twin.stdout)
      twin:run "write /a 2"
      assert.equal("1", session:read "/a")
      assert.equal("2", twin:read "/a")
      twin:rollback(2)
      assert.equal(base.uuid, twin.uuid)
      assert.equal(2, #session:history())
    end)
  end)

  describe("image", function()
    it("is immutable: later runs do not touch it", function()
      session:run "write /a 1"
      local point = session:image()
      session:run "write /a 2"
      assert.equal("1", point:read "/a")
    end)
  end)

  describe("tag_as", function()
    it("tags in place, without a step", function()
      session:run "echo x"
      assert.equal(session, session:tag_as "mine")
      assert.equal("mine", session.tag)
      assert.equal("x\n", session.stdout)
      assert.equal("mine", session:history()[2].image.tag)
      assert.equal(2, #session:history())
      assert.equal(session.uuid, box.images:get("mine").uuid)
      assert.is_nil(session:untag().tag)
    end)
  end)

  describe("apply_files", function()
    it("advances in place where the engine can", function()
      local other <close> = fake.open(full)
      local own = other:session "busybox"
      local before = own.uuid
      local made = own:apply_files { a = { content = "" } }
      assert.not_equal(before, own.uuid)
      assert.equal(own.uuid, made.uuid)
      assert.equal("apply_files", own:history()[2].op)
      assert.equal(made.uuid, own:apply_files().uuid)
      assert.equal(2, #own:history())
      raises("unsupported", session.apply_files, session, "a")
    end)
  end)

  describe("reading", function()
    it("reads where the session stands; entries stay bound to what was listed", function()
      session:run "write /d/a 1"
      local entry = session:ls("/d")[1]
      session:run "write /d/a 2"
      assert.equal("1", entry:read())
      assert.equal("2", session:read "/d/a")
      raises("unsupported", session.popen, session, "x")
    end)
  end)

  describe("close", function()
    it("kills what runs; the waiter gets cancelled, others closed", function()
      bough.run(function()
        local first = bough.spawn(function() return pcall(session.run, session, "sleep 60") end)
        local second = bough.spawn(function()
          bough.sleep(0.002)
          return pcall(session.run, session, "noop", { queue = true })
        end)
        bough.sleep(0.01)
        session:close()
        local _, problem = first:wait()
        assert.equal("cancelled", problem.kind)
        _, problem = second:wait()
        assert.equal("closed", problem.kind)
      end)
      assert.equal(0, driver.live)
      assert.equal("closed", session.state)
      assert.equal(base.uuid, session.uuid)
      for _, name in ipairs { "run", "start", "rollback", "checkout", "branch", "tag_as", "read", "ls" } do
        raises("closed", session[name], session, "x")
      end
      session:close()
    end)

    it("happens at the end of a scope, and hides no error", function()
      local good, problem = pcall(function()
        local own <close> = base:session()
        own:start "sleep 60"
        error "mine"
      end)
      assert.is_false(good)
      assert.match("mine", problem)
      assert.equal(0, driver.live)
    end)
  end)

  describe("fields", function()
    it("raise state before there is a result, and cannot be set", function()
      raises("state", function() return session.stdout end)
      raises("state", function() return session.result end)
      assert.is_nil(session.stdin)
      assert.equal("busybox", session.tag)
      assert.equal(box, session.engine)
      assert.is_nil(session.nonesuch)
      raises("invalid", function() session.tag = "x" end)
    end)

    it("show in a line", function()
      assert.match('^session at image %x+… "busybox"$', tostring(session))
      session:close()
      assert.match("^session %(closed%)", tostring(session))
    end)
  end)

  it("says so when a method is called with a dot", function()
    assert.match("session:run", tostring(raises("invalid", session.run, { "x" })))
  end)

  it("is collected with what it started", function()
    local count = 0
    for _ = 1, 50 do
      local own = base:session()
      own:run "noop"
      setmetatable({}, { __gc = function() count = count + 1 end })
    end
    collectgarbage()
    collectgarbage()
    box:gc()
    assert.equal(50, count)
    assert.equal(1, #driver.last_keep)
  end)
end)
