--- Live processes: what a process object says and does, from its start to its end.
--
-- Their streams are in pipes.lua, the sandboxes that host them in instances.lua.

local bough = require "bough"
local fixture = require "spec.engine.fixture"
local places = require "spec.support.places"
local raises = require "spec.support.raises"
local system = require "system"

return function(open, lacks)
  describe("a process", function()
    local box, base, instance

    setup(function()
      box = open()
      base = box.images:use "busybox"
      instance = base:boot()
    end)

    teardown(function()
      instance:close()
      box:close()
    end)

    local function everywhere(name, body)
      for _, place in ipairs(places) do
        it(name .. ", " .. place.name, function() place.call(body) end)
      end
    end

    -- One that ends, with 0, when its stdin does.
    local function gate(options)
      options = options or {}
      options[1], options.stdin = "cat", bough.PIPE
      return instance:exec(options)
    end

    -- In front of a command that a signal to the group does not reach.
    local apart = lacks.trees and "" or "setsid"

    -- One that sleeps until it is ended, and does `before` first. It has said "ready".
    local function sleeper(before, options)
      local mark = fixture.long_time()
      options = options or {}
      -- a child that a shell has just forked may lose a signal that the shell handles: it must not hold the streams
      options.shell = ("%s\necho ready; sleep %s >&- 2>&- & wait"):format(before or "", mark)
      local process = instance:exec(options)
      assert.equal("ready", process.stdout:read())
      return process, mark
    end

    describe("tells", function()
      everywhere("what it is, before and after its end", function()
        local process <close> = gate()
        assert.equal("cat", process.command)
        assert.equal("writer stdin (open)", tostring(process.stdin))
        assert.equal("reader stdout (open)", tostring(process.stdout))
        assert.equal("reader stderr (open)", tostring(process.stderr))
        for _, name in ipairs { "returncode", "signal", "timed_out", "image" } do
          assert.is_nil(process[name], name)
        end
        assert.is_nil(process:poll())
        assert.match('process.* "cat" running$', tostring(process))
        raises("state", function() return process.result end)
        process.stdin:close()
        assert.equal(0, process:wait())
        assert.equal(0, process.returncode)
        assert.equal(0, process:poll())
        assert.is_nil(process.signal)
        assert.is_false(process.timed_out)
        assert.is_true(process.result.ok)
        assert.equal(0, process.result.exit_code)
        assert.match('process.* "cat" exit 0$', tostring(process))
      end)

      it("its number, by which its own kind knows it", function()
        local process = instance:exec "echo $$; exec cat >&2"
        assert.equal(process.stdout:read "n", process.pid)
        assert.equal(0, process:wait())
      end)

      it("nothing of the process that its fields could be set to", function()
        local process = instance:exec { "true" }
        raises("invalid", function() process.returncode = 1 end)
        raises("invalid", process.wait, nil)
        raises("invalid", process.kill, instance)
        assert.is_nil(process.no_such_field)
        process:wait()
      end)

      it("its result as a table of the caller's own", function()
        local process = instance:exec { "echo", "x", stdout = true }
        process:wait()
        process.result.exit_code = 9
        assert.equal(0, process.result.exit_code)
        assert.equal("x\n", process.result.stdout)
      end)

      it("what it used: time on the clock, of the processor, memory", function()
        local busy = instance:exec "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 0.1"
        busy:wait()
        local used = busy.resources
        assert.is_true(used.user_time > 0.02, "user time " .. used.user_time)
        assert.is_true(used.system_time >= 0)
        assert.is_true(used.elapsed_time >= 0.1 + used.user_time * 0.5, "elapsed " .. used.elapsed_time)
        assert.is_true(used.max_rss > 100 * 1024 and used.max_rss < 64 << 20, "memory " .. used.max_rss)
        assert.equal(used.user_time, busy.result.user_time)
        local idle = instance:exec { "sleep", "0.1" }
        idle:wait()
        assert.is_true(idle.resources.user_time < used.user_time, "idle " .. idle.resources.user_time)
      end)
    end)

    describe("ends", function()
      everywhere("with its exit code, told as often as one asks", function()
        for _, code in ipairs { 0, 1, 42, 127, 128, 255 } do
          local process = instance:exec("exit " .. code)
          for _ = 1, 2 do assert.equal(code, process:wait()) end
          assert.equal(code, process:wait(0))
          assert.equal(code, process:poll())
          assert.equal(code == 0, process.result.ok)
          assert.is_nil(process.signal)
        end
      end)

      everywhere("with 128+n after signal n", function()
        local process = instance:exec "kill -TERM $$"
        assert.equal(143, process:wait())
        assert.equal(15, process.signal)
        assert.equal(15, process.result.signal)
        assert.is_false(process.timed_out)
        assert.match("signal 15$", tostring(process))
      end)

      everywhere("later than some wait: that raises timeout, and the process goes on", function()
        local process <close> = gate()
        local started = system.monotime()
        local problem = raises("timeout", process.wait, process, 0.05)
        assert.is_true(system.monotime() - started >= 0.05)
        assert.match("still running", problem.message, 1, true)
        raises("timeout", process.wait, process, 0)
        assert.is_nil(process:poll())
        process.stdin:write "still there":close()
        assert.equal("still there", process.stdout:read "a")
        assert.equal(0, process:wait(20))
      end)

      it("and refuses times that are none, before it waits", function()
        local process <close> = gate()
        for _, wrong in ipairs { -1, 0 / 0, "soon", {}, true } do
          raises("invalid", process.wait, process, wrong)
          raises("invalid", process.communicate, process, nil, wrong)
        end
        assert.is_nil(process:poll())
      end)

      everywhere("L9.42 poll is nil while running, then the code; kill then wait gives a signal", function()
        local process <close> = gate()
        assert.is_nil(process:poll())
        process:kill()
        assert.equal(137, process:wait())
        assert.equal(137, process:poll())
        local ok, how, number = process:close()
        assert.same({ nil, "signal", 9 }, { ok, how, number })
      end)

      it("so that poll alone sees it, where nobody waits", function()
        local process = instance:exec "exit 6"
        local give_up = system.monotime() + 20
        while process:poll() == nil and system.monotime() < give_up do system.sleep(0.001) end
        assert.equal(6, process.returncode)
      end)

      everywhere("L9.43 close returns io.popen's triple", function()
        assert.same({ true, "exit", 0 }, { instance:exec({ "true" }):close() })
        local failed = instance:exec "exit 3"
        for _ = 1, 2 do
          local ok, how, code = failed:close()
          assert.same({ nil, "exit", 3 }, { ok, how, code })
        end
        local ok, how, number = instance:exec("kill -KILL $$"):close()
        assert.same({ nil, "signal", 9 }, { ok, how, number })
      end)

      it("when close takes its streams: who reads gets the end, who writes the signal", function()
        local reader = instance:exec { shell = "wc -c >/read", stdin = bough.PIPE }
        reader.stdin:write "12345"
        assert.same({ true, "exit", 0 }, { reader:close() })
        assert.equal("5\n", instance:exec("cat /read").stdout:read "a")
        local writer = instance:exec "while :; do echo y; done"
        assert.equal("y", writer.stdout:read())
        local _, how, number = writer:close()
        assert.same({ "signal", 13 }, { how, number })
        raises("closed", writer.stdout.read, writer.stdout)
      end)

      it("with what was written before close", function()
        local process = instance:exec { shell = "cat >/written; sleep 0.05", stdin = bough.PIPE }
        process.stdin:write(("x"):rep(100000))
        assert.is_true(process:close())
        assert.equal("100000\n", instance:exec("wc -c </written").stdout:read "a")
      end)
    end)

    describe("with check", function()
      everywhere("L9.41 makes wait and communicate raise exit, with command, code and both outputs", function()
        local process = instance:exec { shell = "echo out; echo err >&2; exit 3", check = true }
        local problem = raises("exit", process.communicate, process)
        assert.equal(3, problem.result.exit_code)
        assert.equal("out\n", problem.result.stdout)
        assert.equal("err\n", problem.result.stderr)
        assert.equal("echo out; echo err >&2; exit 3", problem.command)
        assert.match('exit code 3 (last line of stderr: "err")', problem.message, 1, true)
        problem = raises("exit", process.wait, process)
        assert.equal("out\n", problem.result.stdout)
        assert.equal(3, process:poll())
        local captured = instance:exec {
          shell = "echo out; kill -9 $$", check = true, stdout = true, stderr = true,
        }
        problem = raises("exit", captured.wait, captured)
        assert.equal("out\n", problem.result.stdout)
        assert.equal(9, problem.result.signal)
        assert.match("signal 9", problem.message, 1, true)
        assert.is_nil((captured:close()))
      end)

      it("lets what went well be", function()
        local process = instance:exec { "echo", "fine", check = true }
        assert.equal(0, process:wait())
        assert.equal("fine\n", (process:communicate()))
      end)
    end)

    describe("communicates:", function()
      everywhere("the input goes in while both outputs come out, whatever their size", function()
        local text = ("0123456789abcdef"):rep(1 << 16)
        local process = instance:exec { shell = "tee /dev/stderr", stdin = bough.PIPE }
        local out, err = process:communicate(text)
        assert.is_true(out == text and err == text, ("%d and %d bytes"):format(#out, #err))
        assert.equal(0, process.returncode)
      end)

      it("without an input stdin ends at once; what is no pipe is nil", function()
        local process = instance:exec { shell = "cat; echo end", stdin = bough.PIPE, stderr = false }
        assert.same({ "end\n" }, { process:communicate() })
        assert.same({ "end\n" }, { process:communicate() })
        local captured = instance:exec { "echo", "x", stdout = true }
        assert.same({ "x\n", "" }, { captured:communicate() })
      end)

      everywhere("after its time has passed it goes on where it was", function()
        local process <close> = instance:exec {
          shell = "mkfifo /go; echo early; read x </go; rm /go; cat; exit 4", stdin = bough.PIPE,
        }
        local text = ("y"):rep(300000)
        raises("timeout", process.communicate, process, text, 0.05)
        assert.is_nil(process:poll())
        fixture.until_true("the fifo", function() return instance:exec({ "test", "-e", "/go" }):wait() == 0 end)
        instance:exec("echo >/go"):wait()
        assert.equal("early\n" .. text, (process:communicate()))
        assert.equal(4, process.returncode)
      end)

      it("ends with the process, not with what it left in the background", function()
        local mark = fixture.long_time()
        local process <close> = instance:exec(("sleep %s & echo $!"):format(mark))
        local child = process:communicate():match "^(%d+)\n$"
        fixture.until_true("its sleep", function() return #fixture.processes("sleep " .. mark) == 1 end)
        assert.equal(0, instance:exec({ "kill", child }):wait())
        fixture.gone("sleep " .. mark)
      end)
    end)

    describe("gets signals:", function()
      everywhere("kill, terminate, send_signal; by name or number", function()
        local function killed(by, ...)
          local process = gate()
          assert.is_true(process[by](process, ...))
          local code = process:wait()
          assert.equal(code, 128 + process.signal)
          return process.signal
        end
        assert.equal(9, killed "kill")
        assert.equal(15, killed "terminate")
        assert.equal(15, killed("kill", "TERM"))
        assert.equal(1, killed("send_signal", 1))
        assert.equal(2, killed("send_signal", "SIGINT"))
        assert.equal(10, killed("send_signal", "usr1"))
      end)

      it("one that it handles is its own affair", function()
        local process = sleeper "trap 'echo got; exit 5' USR1"
        process:send_signal "USR1"
        assert.equal("got\n", process.stdout:read "a")
        assert.equal(5, process:wait())
      end)

      it("they go to its group", function()
        local process, mark = sleeper "(sleep 700 & sleep 700 & wait) &"
        process:kill()
        assert.equal(137, process:wait())
        fixture.gone("sleep " .. mark)
        assert.equal("", process.stdout:read "a") -- nobody has it any more
      end)

      it("and to no other process", function()
        local other <close> = gate()
        local process <close> = gate()
        process:kill()
        process:wait()
        other.stdin:write "alive\n"
        assert.equal("alive", other.stdout:read())
      end)

      it("stop and go on", function()
        local process <close> = gate()
        process:send_signal "STOP"
        instance:exec({ "true" }):wait() -- asked after it, so it has been sent by now
        process.stdin:write "x\n"
        raises("timeout", bough.deadline, 0.05, function() process.stdout:read() end)
        process:send_signal "CONT"
        assert.equal("x", process.stdout:read())
      end)

      it("after its end they are nothing, unknown ones an error that names it", function()
        local process = instance:exec { "true" }
        process:wait()
        assert.is_true(process:kill())
        assert.is_true(process:terminate())
        assert.is_true(process:send_signal "HUP")
        assert.equal(0, process:wait())
        local live <close> = gate()
        for _, wrong in ipairs { "KIL", "SIG", "", 0x1000, -1, 1.5 } do
          local problem = raises("invalid", live.kill, live, wrong)
          assert.match(tostring(wrong), problem.message, 1, true)
        end
        raises("invalid", live.kill, live, true)
        raises("invalid", live.send_signal, live)
        assert.is_nil(live:poll())
      end)
    end)

    describe("with a time limit", function()
      everywhere("is killed with all it started; others in the sandbox go on", function()
        local other <close> = gate()
        local mark = fixture.long_time()
        local process = instance:exec {
          shell = ("echo out; %s sleep %s & sleep %s"):format(apart, mark, mark), timeout = 0.3,
        }
        assert.equal("out", process.stdout:read())
        assert.equal(137, process:wait())
        assert.is_true(process.timed_out)
        assert.is_true(process.result.timed_out)
        assert.is_false(process.result.ok)
        assert.equal(9, process.signal)
        fixture.gone("sleep " .. mark)
        assert.is_nil(other:poll())
        assert.match("timed out", tostring(process), 1, true)
      end)

      it("raises kind timeout with check", function()
        local process = instance:exec { "sleep", "600", timeout = 0.05, check = true }
        local problem = raises("timeout", process.wait, process)
        assert.equal(137, problem.result.exit_code)
        assert.match("time limit of 0.05 s", problem.message, 1, true)
        raises("timeout", process.communicate, process)
      end)

      it("that it kept is none", function()
        local process = instance:exec { "true", timeout = 60 }
        assert.equal(0, process:wait())
        assert.is_false(process.timed_out)
        assert.equal(0, instance:exec({ "true", timeout = math.huge }):wait())
      end)
    end)

    describe("that cannot start raises as a run does:", function()
      local function same_as_run(kind, named, options)
        local function given()
          local copy = {}
          for name, value in pairs(options) do copy[name] = value end
          return copy
        end
        local expected = raises(kind, base.run, base, given())
        local session <close> = base:session()
        for _, place in ipairs { instance, base, session } do
          local problem = raises(kind, place.popen, place, given())
          assert.equal(expected.message, problem.message)
          assert.match(named, problem.message, 1, true)
        end
        assert.equal(base.uuid, session.uuid)
        assert.equal(0, session:run("true").exit_code) -- it is not busy
        assert.equal(0, instance:exec("true"):wait())
      end

      it("no such program", function() same_as_run("not_found", '"no-such-program"', { "no-such-program" }) end)
      it("no such path", function() same_as_run("not_found", '"/no/such"', { "/no/such" }) end)
      it("not executable", function() same_as_run("denied", '"/etc/passwd"', { "/etc/passwd" }) end)
      it("a directory", function() same_as_run("denied", '"/etc"', { "/etc" }) end)
      it("no such directory", function() same_as_run("not_found", '"/nowhere"', { "true", cwd = "/nowhere" }) end)
      it("no such user", function() same_as_run("not_found", '"joe"', { "true", user = "joe" }) end)
      it("no such file for stdin", function()
        same_as_run("not_found", "/no/where", { "cat", stdin = bough.file "/no/where" })
      end)
      it("no such place for output", function()
        same_as_run("not_found", "/no/where", { "true", stdout = "/no/where" })
      end)

      everywhere("and leaves streams that it was to get as they were", function()
        local process <close> = gate()
        raises("not_found", instance.exec, instance, { "true", cwd = "/nowhere", stdin = process.stdin and nil })
        process.stdin:write("x\n")
        assert.equal("x", process.stdout:read())
      end)

      it("options that are none, before anything starts", function()
        local problem = raises("invalid", instance.exec, instance, { "true", timout = 1 })
        assert.match("timeout", problem.message, 1, true)
        raises("invalid", instance.exec, instance, {})
        raises("invalid", instance.exec, instance, { "true", shell = "true" })
        raises("invalid", instance.exec, instance, { "true", stdin = bough.STDOUT })
        raises("invalid", base.popen, base, { "true", cache = true })
        assert.equal(0, instance.live)
      end)
    end)

    describe("finds", function()
      it("the environment, directory and user that it is given", function()
        local process = instance:exec {
          shell = "echo $A; pwd; id -u; id -g; env | grep -c HOME", cwd = "/usr", user = "7:8",
          env = { A = "a b", HOME = false },
        }
        assert.equal("a b\n/usr\n7\n8\n0\n", process.stdout:read "a")
        process:wait()
      end)

      it("nothing of the host's", function()
        for _, look in ipairs {
          { shell = "env | sort; pwd; umask; ulimit -n" },
          { "ls", "/proc/self/fd" },
          { "grep", "-E", "^Sig(Blk|Ign|Cgt)|^NoNewPrivs|^Seccomp:|^Cap", "/proc/self/status" },
        } do
          local run = base:run(look)
          assert.equal(0, run.exit_code)
          for _, place in ipairs { base, instance } do
            local process = place:popen(look)
            assert.equal(run.stdout, process.stdout:read "a")
            process:wait()
          end
        end
        assert.match("SigIgn:%s*0+\n", base:run({ "cat", "/proc/self/status" }).stdout)
      end)

      it("a session and a group of its own", function()
        local process = instance:exec "cut -d' ' -f1,5,6 </proc/$$/stat"
        local pid, group, session = process.stdout:read("n", "n", "n")
        assert.same({ process.pid, process.pid, process.pid }, { pid, group, session })
        process:wait()
      end)
    end)

    if not lacks.terminals then
      describe("has a terminal:", function()
        it("stdin, stdout and stderr are one; what is typed goes in, what is shown comes out", function()
          local process <close> = instance:exec {
            shell = "test -t 0 && test -t 1 && test -t 2 && echo terminal; stty -echo; read x; echo got $x; echo e >&2",
            pty = true,
          }
          assert.is_nil(process.stderr)
          assert.equal("terminal\r", process.stdout:read())
          process.stdin:write "typed\n"
          local shown = process.stdout:read "a"
          assert.match("got typed\r\ne\r\n$", shown)
          assert.equal(0, process:wait())
        end)

        it("of the size and name it is given, else 24 by 80", function()
          local function shown(pty)
            local process <close> = instance:exec { shell = "stty size; echo $TERM", pty = pty }
            local text = process.stdout:read "a"
            assert.equal(0, process:wait())
            return text
          end
          assert.equal("50 132\r\nvt100\r\n", shown { rows = 50, cols = 132, term = "vt100" })
          assert.match("^%d+ %d+\r\nxterm%-256color\r\n$", shown(true))
          for _, wrong in ipairs { 80, { rows = 0 }, { cols = 70000 }, { rows = 1.5 }, { height = 3 } } do
            raises("invalid", instance.exec, instance, { "true", pty = wrong })
          end
          raises("invalid", instance.exec, instance, { "true", pty = true, stderr = true })
        end)

        it("that can be resized, which the command is told", function()
          local process = instance:exec {
            shell = "trap 'stty size; exit 0' WINCH; echo ready; sleep 600 & wait", pty = true,
          }
          assert.equal("ready\r", process.stdout:read())
          assert.is_true(process:resize(33, 99))
          assert.equal("33 99\r\n", process.stdout:read "a")
          assert.equal(0, process:wait())
          assert.is_true(process:resize(1, 1)) -- too late is no mistake
          local plain <close> = gate()
          raises("state", plain.resize, plain, 24, 80)
          raises("invalid", plain.resize, plain, 0, 80)
          raises("invalid", plain.resize, plain, 24, "wide")
        end)

        it("whose keys are signals and the end of input", function()
          local process <close> = instance:exec { shell = "trap 'echo int' INT; cat; cat; exit 6", pty = true }
          local function echoed(line)
            process.stdin:write(line, "\n")
            assert.equal(line .. "\r", process.stdout:read()) -- as it was typed
            assert.equal(line .. "\r", process.stdout:read()) -- and by cat, so that runs
          end
          echoed "one"
          process.stdin:write "\3" -- ends the first cat; the shell hears of it too
          assert.match("int\r$", process.stdout:read())
          echoed "two"
          process.stdin:close()
          assert.equal(6, process:wait())
        end)

        it("through which bytes go as they are, once it is raw", function()
          local all = {}
          for byte = 0, 255 do all[#all + 1] = string.char(byte) end
          local text = table.concat(all):rep(300)
          local process <close> = instance:exec { shell = "stty raw -echo; echo ready; exec cat", pty = true }
          assert.equal("ready", process.stdout:read())
          local writer = bough.spawn(function() process.stdin:write(text):flush() end)
          local back = process.stdout:read(#text)
          assert.is_true(back == text, "it came back different")
          writer:wait()
        end)

        it("which hangs up when the process is given up", function()
          local mark = fixture.long_time()
          do
            local line = ("setsid sleep %s & exec sleep %s"):format(mark, mark)
            local _ <close> = instance:exec { shell = line, pty = true }
          end
          fixture.gone("sleep " .. mark)
        end)

        it("in a run too: the output is stdout", function()
          local image = base:run { shell = "test -t 1 && echo yes >&2; exit 3", pty = true }
          assert.equal("yes\r\n", image.stdout)
          assert.equal(3, image.exit_code)
        end)
      end)
    end

    describe("that nobody wants any more", function()
      everywhere("is over when its block is, with all it started", function()
        local process
        local mark = fixture.long_time()
        do
          local p <close> = instance:exec(("%s sleep %s & echo ready; sleep %s & wait"):format(apart, mark, mark))
          assert.equal("ready", p.stdout:read())
          process = p
        end
        assert.equal(137, process:poll())
        fixture.gone("sleep " .. mark)
        raises("closed", process.stdout.read, process.stdout)
      end)

      it("is over when an error ends its block, and the error stays what it was", function()
        local mark
        local oops = {}
        local ok, problem = pcall(function()
          local _ <close>, its = sleeper()
          mark = its
          error(oops)
        end)
        assert.is_false(ok)
        assert.equal(oops, problem)
        fixture.gone("sleep " .. mark)
      end)

      it("is killed when it is collected", function()
        local _, mark = sleeper()
        _ = nil
        collectgarbage()
        collectgarbage()
        fixture.gone("sleep " .. mark)
        assert.equal(0, instance:exec("true"):wait())
      end)

      it("but whose end was seen is left alone, and so is what it left running", function()
        local mark = fixture.long_time()
        local child
        do
          local process <close> = instance:exec(("sleep %s >/dev/null 2>&1 & echo $!"):format(mark))
          child = process.stdout:read()
          assert.equal(0, process:wait())
        end
        assert.equal(1, #fixture.processes("sleep " .. mark))
        assert.equal(0, instance:exec({ "kill", child }):wait())
        fixture.gone("sleep " .. mark)
      end)
    end)

    -- Every wait there is, of a process that would go on for ever.
    local waits = {
      { "wait", function(process) process:wait() end },
      { "wait with a time", function(process) process:wait(1000) end },
      { "communicate", function(process) process:communicate(("x"):rep(8 << 20)) end },
      { "close", function(process) process:close() end },
      { "a read", function(process) process.stdout:read() end },
      { "a read of stderr", function(process) process.stderr:read "a" end },
      { "lines", function(process) process.stdout:lines()() end },
      { "a write", function(process) process.stdin:write(("x"):rep(8 << 20)) end },
    }
    if not lacks.flushes then
      waits[#waits + 1] = { "a flush", function(process)
        while process.stdin.written < 60000 do process.stdin:write(("x"):rep(10000)) end
        process.stdin:write(("x"):rep(60000)):flush()
      end }
    end

    local function stubborn(where)
      local mark = fixture.long_time()
      return (where or instance):exec { "sleep", mark, stdin = bough.PIPE }, mark
    end

    -- Lets a task come to its wait: nothing more happens then.
    local function settle(task)
      for _ = 1, 20 do bough.step(0) end
      assert.equal("waiting", task.status)
    end

    describe("L9.46 goes with its task, cancelled in", function()
      for _, wait in ipairs(waits) do
        it(wait[1], function()
          local mark, closed
          local task = bough.spawn(function()
            local _ <close> = setmetatable({}, { __close = function(_, problem) closed = problem.kind end })
            local process <close>, its = stubborn()
            mark = its
            wait[2](process)
          end)
          fixture.until_true("the start", function() return mark end)
          settle(task)
          task:cancel()
          raises("cancelled", task.wait, task)
          assert.equal("cancelled", closed)
          assert.equal(0, #fixture.processes("sleep " .. mark))
        end)
      end

      it("its start", function()
        local mark = fixture.long_time()
        for steps = 0, 12 do
          local task = bough.spawn(function()
            local process <close> = instance:exec("sleep " .. mark)
            process:wait()
          end)
          for _ = 1, steps do bough.step(0) end
          task:cancel()
          raises("cancelled", task.wait, task)
        end
        fixture.gone("sleep " .. mark)
        fixture.until_true("the end of all", function() return instance.live == 0 end)
        assert.equal(0, instance:exec("true"):wait())
      end)
    end)

    describe("goes on when a deadline passes in", function()
      for _, wait in ipairs(waits) do
        if wait[1] ~= "close" then -- that gives the streams up first
          it(wait[1], function()
            local process <close>, mark = stubborn()
            raises("timeout", bough.deadline, 0.02, wait[2], process)
            assert.is_nil(process:poll())
            assert.is_true(#fixture.processes("sleep " .. mark) > 0)
          end)
        end
      end
    end)

    describe("that is killed wakes who is in", function()
      for _, wait in ipairs(waits) do
        it(wait[1], function()
          local process = stubborn()
          local task = bough.spawn(pcall, wait[2], process)
          settle(task)
          process:kill()
          local ok, problem = task:wait()
          assert.is_true(ok or problem.kind == "closed", tostring(problem))
          assert.equal(137, process:wait())
        end)
      end
    end)

    describe("whose sandbox is closed wakes who is in", function()
      for _, wait in ipairs(waits) do
        it(wait[1], function()
          local own = base:boot()
          local process, mark = stubborn(own)
          local task = bough.spawn(pcall, wait[2], process)
          settle(task)
          own:close()
          local ok, problem = task:wait()
          if not ok then assert.is_true(problem.kind == "closed" or problem.kind == "cancelled", tostring(problem)) end
          assert.equal(137, process:wait())
          raises("closed", own.exec, own, "true")
          fixture.gone("sleep " .. mark)
        end)
      end
    end)

    -- What every context runs.
    local function body()
      local words = {}
      local sorter <close> = instance:exec { "sort", stdin = bough.PIPE }
      sorter.stdin:write("b\n", "a\n", 3, "\n"):flush():close()
      for line in sorter.stdout:lines() do words[#words + 1] = line end
      words[#words + 1] = sorter:wait()
      local session <close> = base:session()
      local process = session:popen "echo x >/x; cat /x; echo e >&2; exit 5"
      words[#words + 1] = process.stderr:read "a"
      words[#words + 1] = process.stdout:read "a"
      words[#words + 1] = select(3, process:close())
      words[#words + 1] = session:read "/x"
      words[#words + 1] = process.image:read "/x"
      local ok, problem = pcall(function()
        instance:exec({ "false", check = true }):wait()
      end)
      words[#words + 1] = tostring(ok) .. problem.kind
      local killed <close> = instance:exec { "cat", stdin = bough.PIPE }
      words[#words + 1] = select(2, pcall(killed.wait, killed, 0.01)).kind
      killed:kill()
      words[#words + 1] = killed:wait()
      words[#words + 1] = (instance:exec({ "cat", stdin = bough.PIPE }):communicate "in")
      return table.concat(words, "|")
    end

    local EXPECTED = "3|a|b|0|e\n|x\n|5|x\n|x\n|falseexit|timeout|137|in"

    everywhere("L9.44 does the same", function() assert.equal(EXPECTED, body()) end)

    it("L9.44 does the same in a coroutine that is nobody's task", function()
      local generator = coroutine.wrap(function() coroutine.yield(body()) end)
      assert.equal(EXPECTED, generator())
    end)

    it("L9.44 does the same where nothing can yield, and in closers", function()
      local function check()
        local seen
        table.sort({ 1, 2 }, function(a, b)
          seen = seen or body()
          return a < b
        end)
        assert.equal(EXPECTED, seen)
        local co = coroutine.create(function()
          local _ <close> = setmetatable({}, { __close = function() seen = body() end })
          coroutine.yield()
        end)
        seen = nil
        coroutine.resume(co)
        assert.is_true(coroutine.close(co))
        assert.equal(EXPECTED, seen)
      end
      check()
      bough.run(check)
    end)

    it("L9.45 two that take half a second take that together, one in a comparator as well", function()
      local started = system.monotime()
      local codes = bough.all {
        function() return instance:exec({ "sleep", "0.5" }):wait() end,
        function() return instance:exec({ "sleep", "0.5" }):wait() end,
        function()
          local code
          table.sort({ 1, 2 }, function(a, b)
            code = code or instance:exec({ "sleep", "0.2" }):wait()
            return a < b
          end)
          return code
        end,
      }
      assert.is_true(system.monotime() - started < 0.95, "they took " .. system.monotime() - started)
      assert.same({ 0, 0, 0, n = 3 }, codes)
    end)

    it("L9.47 the first failure cancels the others and kills their processes; settle does not", function()
      local marks = { fixture.long_time(), fixture.long_time() }
      local ready = 0
      local function sleeping(mark)
        return function()
          local process <close> = instance:exec("echo ready; sleep " .. mark)
          process.stdout:read()
          ready = ready + 1
          process:wait()
        end
      end
      local problem = raises("exit", bough.all, {
        sleeping(marks[1]), sleeping(marks[2]),
        function()
          fixture.until_true("both", function() return ready == 2 end)
          instance:exec({ shell = "exit 9", check = true }):wait()
        end,
      })
      assert.equal(9, problem.result.exit_code)
      for _, mark in ipairs(marks) do assert.equal(0, #fixture.processes("sleep " .. mark)) end
      local outcomes = bough.all {
        function() instance:exec({ "false", check = true }):wait() end,
        function() return instance:exec("exit 4"):wait() end,
        settle = true,
      }
      assert.equal("exit", outcomes[1].err.kind)
      assert.same({ ok = true, value = 4 }, outcomes[2])
    end)

    it("L9.48 several at once are no more than the limit", function()
      local list = {}
      for i = 1, 12 do
        list[i] = function()
          local process <close> = instance:exec { "cat", stdin = bough.PIPE }
          local seen = instance.live
          bough.sleep(0)
          process.stdin:close()
          process:wait()
          return seen
        end
      end
      list.limit = 3
      local most = 0
      for _, seen in ipairs(bough.all(list)) do most = math.max(most, seen) end
      assert.is_true(most > 1 and most <= 3, "there were " .. most)
    end)

    it("among a hundred at once is each by itself", function()
      local list = {}
      for i = 1, 100 do
        list[i] = function()
          local process <close> = instance:exec { shell = "read x; echo $x >&2; exit " .. i, stdin = bough.PIPE }
          process.stdin:write(i * 1000, "\n")
          return { process.stderr:read "n", process:wait() }
        end
      end
      for i, pair in ipairs(bough.all(list)) do assert.same({ i * 1000, i }, pair) end
      assert.equal(0, instance.live)
    end)
  end)
end
