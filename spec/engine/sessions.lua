--- Sessions: moving along images with real commands.

local bough = require "bough"
local fixture = require "spec.engine.fixture"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

return function(open, lacks)
  describe("a session", function()
    local box, base, session

    setup(function()
      box = open()
      base = box.images:use "busybox"
    end)

    teardown(function() box:close() end)

    before_each(function() session = base:session() end)

    after_each(function() session:close() end)

    local function ops()
      local names = {}
      for i, step in ipairs(session:history()) do names[i] = step.op end
      return names
    end

    it("moves: a later run sees the files of an earlier one, whose output stays its own", function()
      local one = session:run "echo one >/file; echo first"
      assert.equal(one.uuid, session.uuid)
      assert.not_equal(base.uuid, session.uuid)
      local two = session:run "cat /file; echo two >>/file"
      assert.equal("one\n", session.stdout)
      assert.equal("first\n", one.stdout)
      assert.equal("one\n", one:read "/file")
      assert.equal("one\ntwo\n", session:read "/file")
      assert.equal(one.uuid, two.parent_uuid)
      raises("not_found", base.read, base, "/file")
    end)

    it("moves after a non-zero exit", function()
      session:run "echo x >/x; exit 3"
      assert.equal(3, session.exit_code)
      assert.is_false(session.ok)
      assert.equal("x\n", session:read "/x")
    end)

    it("has no result before its first run", function()
      assert.equal(base.uuid, session.uuid)
      assert.equal("busybox", session.tag)
      assert.is_nil(session.stdin)
      local fresh <close> = (lacks.imports and base or box.images:import(scratch.dir())):session()
      assert.equal("pulled", fresh.state)
      raises("state", function() return fresh.result end)
      raises("state", function() return fresh.stdout end)
      raises("state", fresh.wait, fresh)
    end)

    it("stays, usable, after a disposable run", function()
      session:run "echo a >/a"
      local before = session.uuid
      session:run { shell = "echo b >/b; cat /a", disposable = true }
      assert.equal("a\n", session.stdout)
      assert.equal(before, session.uuid)
      raises("not_found", session.read, session, "/b")
      assert.equal(0, session:run("test ! -e /b").exit_code)
    end)

    it("stays, usable, after a failed check", function()
      local before = session.uuid
      local problem = raises("exit", session.run, session, { shell = "echo b >/b; exit 4", check = true })
      assert.equal(4, problem.result.exit_code)
      assert.equal(before, session.uuid)
      assert.equal(4, session.exit_code)
      assert.equal(0, session:run("test ! -e /b").exit_code)
    end)

    it("stays, usable, after a run that could not start", function()
      local before = session.uuid
      raises("not_found", session.run, session, { "no-such-program" })
      raises("invalid", session.run, session, {})
      raises("invalid", session.run, session, { "x", timout = 1 })
      assert.equal(before, session.uuid)
      assert.equal("a\n", session:run("echo a").stdout)
    end)

    it("stays, usable, after a time limit, whose image can be looked into", function()
      local before = session.uuid
      local late = session:run { shell = "echo b >/b; sleep 600", timeout = 0.3 }
      assert.is_true(late.timed_out)
      assert.is_true(session.timed_out)
      assert.equal("b\n", late:read "/b")
      assert.equal(before, session.uuid)
      assert.equal(0, session:run("test ! -e /b").exit_code)
    end)

    it("stays, usable, after its run was cancelled, which kills the command", function()
      local mark = fixture.long_time()
      local listener = fixture.listener()
      local before = session.uuid
      local task = bough.spawn(function()
        session:run {
          shell = "echo b >/b; echo ready; sleep " .. mark, stdout = listener.sink, text = "lines",
        }
      end)
      listener.seen "ready"
      assert.equal("executing", session.state)
      task:cancel()
      raises("cancelled", task.wait, task)
      assert.equal(before, session.uuid)
      assert.equal(0, session:run("test ! -e /b").exit_code)
      fixture.gone("sleep " .. mark)
    end)

    it("refuses a second run while it is busy", function()
      local mark = fixture.long_time()
      local run = session:start { "sleep", mark }
      assert.equal("executing", session.state)
      raises("busy", session.run, session, "true")
      raises("busy", session.rollback, session)
      raises("busy", session.tag_as, session, "x")
      run:close()
      assert.equal(0, session:run("true").exit_code)
    end)

    it("lines runs up with queue = true, in order", function()
      local queued = base:session { queue = true }
      bough.run(function()
        local list = {}
        for i = 1, 5 do
          list[i] = function() return queued:run(("echo %d >>/log; cat /log | tr '\\n' ' '"):format(i)) end
        end
        local images = bough.all(list)
        assert.equal("1 2 3 4 5 ", images[5].stdout)
        assert.equal("1 2 ", images[2].stdout)
      end)
      assert.equal("1\n2\n3\n4\n5\n", queued:read "/log")
      queued:close()
    end)

    it("begins with start and moves with wait", function()
      local before = session.uuid
      local run = session:start "echo x >/x"
      assert.equal(before, session.uuid)
      assert.equal(run, session:wait())
      assert.equal(run.uuid, session.uuid)
      assert.equal(run, session:wait())
      assert.equal("x\n", session:read "/x")
    end)

    it("branches: neither sees what the other does", function()
      session:run "echo common >/common"
      local twin <close> = session:branch()
      assert.equal(session.uuid, twin.uuid)
      session:run "echo mine >/mine"
      twin:run "echo its >/its"
      assert.equal("common\n", twin:read "/common")
      raises("not_found", twin.read, twin, "/mine")
      raises("not_found", session.read, session, "/its")
      assert.equal(3, #twin:history())
    end)

    it("branches from the image where it stands", function()
      local image = session:run "echo 1 >/n"
      session:run "echo 2 >/n"
      assert.equal("1\n", image:run("cat /n").stdout)
      assert.equal("2\n", session:image():run("cat /n").stdout)
      assert.equal("1\n", image:session():read "/n")
    end)

    it("remembers where it was", function()
      local one = session:run "exit 3"
      local two = session:run { "true" }
      local history = session:history()
      assert.same({ "session", "run", "run" }, ops())
      assert.equal(base.uuid, history[1].uuid)
      assert.equal(one, history[2].image)
      assert.equal(3, history[2].exit_code)
      assert.equal("exit 3", history[2].command)
      assert.equal(two.uuid, history[3].uuid)
      assert.is_true(history[2].at <= history[3].at)
    end)

    it("goes back, one step or several, as if they had not been", function()
      session:run "echo 1 >/n"
      local one = session.uuid
      session:run "echo 2 >/n"
      session:run "rm /n"
      session:rollback()
      assert.equal("2\n", session:read "/n")
      session:rollback()
      assert.equal(one, session.uuid)
      assert.equal("1\n", session:run("cat /n").stdout)
      session:rollback(2)
      assert.equal(base.uuid, session.uuid)
      assert.same({ "session" }, ops())
      raises("state", session.rollback, session)
      raises("invalid", session.rollback, session, -1)
      assert.equal(session, session:rollback(0))
    end)

    it("goes to any image by object, uuid or tag, as a step", function()
      local image = base:run { shell = "echo x >/x", tag = "checkout-me" }
      for _, ref in ipairs { image, image.uuid, "checkout-me" } do
        session:checkout(ref)
        assert.equal(image.uuid, session.uuid)
        assert.equal("x\n", session:run("cat /x").stdout)
        session:rollback(2)
      end
      raises("not_found", session.checkout, session, "no-such-tag")
      raises("invalid", session.checkout, session, 7)
      raises("disposed", session.checkout, session, base:run { "true", disposable = true })
      assert.equal(base.uuid, session.uuid)
    end)

    it("tags where it stands, without a step", function()
      session:run "true"
      assert.equal(session, session:tag_as "here")
      assert.equal("here", session.tag)
      assert.equal(session.uuid, box.images:get "here".uuid)
      session:untag()
      assert.is_nil(session.tag)
      raises("not_found", box.images.get, box.images, "here")
      assert.equal(2, #session:history())
    end)

    it("has defaults that a run's own options override", function()
      local s <close> = base:session {
        cwd = "/tmp", env = { A = "1", B = "2" }, hostname = "host", truncate_output_at = 20, check = true,
      }
      s:run "pwd; echo $A$B; hostname"
      assert.equal("/tmp\n12\nhost\n", s.stdout)
      s:run { shell = "pwd; echo $A$B", cwd = "/usr", env = { A = "9", B = false } }
      assert.equal("/usr\n9\n", s.stdout)
      s:run "printf 123456789012345678901234567890"
      assert.equal(20, #s.stdout)
      raises("exit", s.run, s, "false")
      assert.equal(1, s:run({ "false", check = false }).exit_code)
      raises("invalid", base.session, base, { cwdd = "/" })
    end)

    it("lists entries that keep reading the image that was listed", function()
      session:run "echo 1 >/n"
      local listed
      for _, entry in ipairs(session:ls "/") do
        if entry.name == "n" then listed = entry end
      end
      session:run "echo 2 >/n"
      assert.equal("1\n", listed:read())
      assert.equal("2\n", session:read "/n")
    end)

    it("ends with its block, and kills what runs in it", function()
      local mark = fixture.long_time()
      local kept
      do
        local s <close> = base:session()
        kept = s
        s:start { "sleep", mark }
      end
      assert.equal("closed", kept.state)
      fixture.gone("sleep " .. mark)
      raises("closed", kept.run, kept, "true")
      raises("closed", kept.read, kept, "/etc/passwd")
      assert.match("closed", tostring(kept), 1, true)
      kept:close()
    end)

    it("shows in one line where it is", function()
      assert.equal("session at " .. tostring(base), tostring(session))
      local mark = fixture.long_time()
      local run = session:start { "sleep", mark }
      assert.match("^session %(executing%) at image ", tostring(session))
      run:close()
      session:run "exit 2"
      assert.match("exit 2$", tostring(session))
    end)

    it("is made by the engine as well, from a tag or a uuid", function()
      local s <close> = box:session("busybox", { cwd = "/usr" })
      assert.equal("/usr\n", s:run("pwd").stdout)
      local t <close> = box:session(s.uuid)
      assert.equal(s.uuid, t.uuid)
      raises("not_found", box.session, box, "no-such-image")
    end)

    it("keeps its steps through gc", function()
      session:run "echo 1 >/n"
      session:run "echo 2 >/n"
      collectgarbage()
      if not lacks.removal then box:gc() end
      assert.equal("2\n", session:read "/n")
      session:rollback()
      assert.equal("1\n", session:run("cat /n").stdout)
    end)
  end)
end
