--- Runs: what a command sees, what comes back, what the image of it is.

local bough = require "bough"
local fixture = require "spec.engine.fixture"
local raises = require "spec.support.raises"

local function approx(expected, actual, tolerance)
  assert.is_true(math.abs(expected - actual) <= tolerance, ("%s is not %s"):format(actual, expected))
end

return function(open, lacks)
  describe("a run", function()
    local box, base

    setup(function()
      box = open()
      base = box.images:use "busybox"
    end)

    teardown(function() box:close() end)

    describe("starts", function()
      it("with a command in the array part, no shell", function()
        assert.equal("$HOME *\n", base:run({ "echo", "$HOME", "*" }).stdout)
        assert.equal("a b\n", base:run({ command = "echo", args = { "a", "b" } }).stdout)
      end)

      it("with a shell line, alone or with options", function()
        assert.equal("2\n", base:run("echo $((1 + 1))").stdout)
        assert.equal("/tmp\n", base:run("pwd", { cwd = "/tmp" }).stdout)
        assert.equal("x\n", base:run({ shell = "echo x" }).stdout)
      end)

      it("not without a command, nor with two", function()
        raises("invalid", base.run, base, {})
        raises("invalid", base.run, base, { command = "true", shell = "true" })
        raises("invalid", base.run, base, { "true", shell = "true" })
        raises("invalid", base.run, base, { command = "ls", args = "-l" })
      end)

      it("not with an option nobody knows, which is named with its nearest", function()
        local problem = raises("invalid", base.run, base, { "true", tiemout = 1 })
        assert.match('"tiemout"', problem.message, 1, true)
        assert.match('"timeout"', problem.message, 1, true)
      end)

      it("not when a file is missing that was to be put in place, which is named", function()
        local before = #box.images:list()
        local problem = raises("not_found", base.run, base, { "true", files = { ["/x"] = "./no-such-file" } })
        assert.match("no-such-file", problem.message, 1, true)
        assert.equal(before, #box.images:list())
      end)

      it("not when the program, directory or user is not there, with its name", function()
        local before = #box.images:list()
        local program = raises("not_found", base.run, base, { "no-such-program" })
        assert.match('"no-such-program"', program.message, 1, true)
        local cwd = raises("not_found", base.run, base, { "true", cwd = "/nowhere" })
        assert.match("/nowhere", cwd.message, 1, true)
        local user = raises("not_found", base.run, base, { "true", user = "joe" })
        assert.match('"joe"', user.message, 1, true)
        assert.equal(before, #box.images:list())
      end)

      it("a program that may not be executed with kind denied", function()
        local image = base:run "echo true >/script; chmod 644 /script"
        raises("denied", image.run, image, { "/script" })
      end)
    end)

    describe("ends", function()
      it("non-zero as a result: the code is exact, ok is false", function()
        for _, code in ipairs { 1, 2, 77, 126, 127, 128, 254, 255 } do
          local image = base:run { shell = "exit " .. code }
          assert.equal(code, image.exit_code)
          assert.is_false(image.ok)
          assert.is_nil(image.signal)
          assert.is_string(image.uuid)
        end
        assert.is_true(base:run("true").ok)
      end)

      it("by a signal as the shell says it: 128+n, and n apart", function()
        for name, number in pairs { KILL = 9, TERM = 15, HUP = 1, USR1 = 10 } do
          local image = base:run { shell = ("echo before; kill -%s $$; echo after"):format(name) }
          assert.equal(128 + number, image.exit_code)
          assert.equal(number, image.signal)
          assert.equal("before\n", image.stdout)
          assert.is_false(image.ok)
          assert.is_false(image.timed_out)
        end
      end)

      it("and what it left running ends with it", function()
        local mark = fixture.long_time()
        local image = base:run { shell = ("sleep %s & (setsid sleep %s &) ; echo done"):format(mark, mark) }
        assert.equal("done\n", image.stdout)
        assert.equal(0, #fixture.processes("sleep " .. mark))
      end)

      it("at its time limit as a result, with the output and the files so far", function()
        local mark = fixture.long_time()
        local image = base:run {
          shell = ("echo out; echo err >&2; echo kept >/kept; sleep %s"):format(mark), timeout = 0.3,
        }
        assert.is_true(image.timed_out)
        assert.is_true(image.result.timed_out)
        assert.is_false(image.ok)
        assert.equal(137, image.exit_code)
        assert.equal("out\n", image.stdout)
        assert.equal("err\n", image.stderr)
        assert.equal("kept\n", image:read "/kept")
        assert.is_true(image.elapsed_time >= 0.29, "it ended early")
        assert.is_true(image.elapsed_time < 10, "it ended late")
        assert.equal(0, #fixture.processes("sleep " .. mark))
        assert.equal("kept\n", image:run("cat /kept").stdout)
      end)

      it("at its time limit whatever it does about signals", function()
        local image = base:run { shell = "trap '' TERM INT HUP; while :; do :; done", timeout = 0.2 }
        assert.is_true(image.timed_out)
      end)

      it("before its time limit as if there were none", function()
        local image = base:run { "true", timeout = 60 }
        assert.is_false(image.timed_out)
        assert.equal(0, image.exit_code)
        raises("invalid", base.run, base, { "true", timeout = 0 })
        raises("invalid", base.run, base, { "true", timeout = -1 })
        assert.equal(0, base:run({ "true", timeout = math.huge }).exit_code)
      end)

      it("badly under check as kind exit, with the result and the image", function()
        local problem = raises("exit", base.run, base,
          { shell = "echo out; echo broken >&2; touch /left; exit 7", check = true })
        assert.equal(7, problem.result.exit_code)
        assert.equal("out\n", problem.result.stdout)
        assert.equal("broken\n", problem.result.stderr)
        assert.match("exit code 7", tostring(problem), 1, true)
        assert.match("broken", tostring(problem), 1, true)
        assert.equal("", problem.image:read "/left")
        assert.equal(0, base:run({ "true", check = true }).exit_code)
      end)

      it("at its time limit under check as kind timeout, with the result", function()
        local problem = raises("timeout", base.run, base,
          { shell = "echo out; sleep 600", check = true, timeout = 0.3 })
        assert.is_true(problem.result.timed_out)
        assert.equal("out\n", problem.result.stdout)
      end)
    end)

    describe("measures", function()
      it("the time on the clock", function()
        local image = base:run { "sleep", "0.25" }
        assert.is_true(image.elapsed_time >= 0.24, "too short")
        assert.is_true(image.elapsed_time < 5, "too long")
      end)

      it("the time of the processor, children's included", function()
        local result = base:run { shell = "(i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done)" }.result
        assert.is_true(result.user_time > 0.02, "no user time: " .. result.user_time)
        assert.is_true(result.user_time + result.system_time <= result.elapsed_time + 0.1)
        assert.equal(result.user_time, result.resources.user_time)
        local calls = base:run { "dd", "if=/dev/zero", "of=/dev/null", "bs=64k", "count=20000" }.result
        assert.is_true(calls.system_time > 0.02, "no system time: " .. calls.system_time)
        local idle = base:run { "sleep", "0.2" }.result
        assert.is_true(idle.user_time + idle.system_time < 0.1)
      end)

      it("the peak of the memory", function()
        local small = base:run({ "true" }).result
        local fill = "x=$(dd if=/dev/zero bs=1M count=24 2>/dev/null | tr '\\0' x); : ${#x}"
        local large = base:run({ shell = fill }).result
        assert.is_true(small.max_rss > 100 * 1024 and small.max_rss < 16 << 20, "true: " .. small.max_rss)
        assert.is_true(large.max_rss > 24 << 20, "24 MiB: " .. large.max_rss)
        assert.equal(large.max_rss, large.resources.max_rss)
      end)
    end)

    describe("has an environment", function()
      local function env_of(options)
        options[1] = "env"
        local lines = fixture.lines(base:run(options).stdout)
        table.sort(lines)
        return lines
      end
      local path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

      it("in which nothing is the host's", function()
        assert.same({ "HOME=/root", path }, env_of {})
      end)

      it("with what it is given", function()
        assert.same({ "A=1", "B=x y=z", "EMPTY=", "HOME=/root", "N=7", path },
          env_of { env = { A = "1", B = "x y=z", N = 7, EMPTY = "" } })
        if not lacks.bytes then assert.equal("A=\xff", env_of { env = { A = "\xff" } }[1]) end
      end)

      it("in which what it is given wins", function()
        assert.same({ "HOME=/tmp", "PATH=/usr/bin" }, env_of { env = { PATH = "/usr/bin", HOME = "/tmp" } })
      end)

      it("without what is false", function()
        assert.same({}, env_of { env = { PATH = false, HOME = false, NOT_THERE = false } })
      end)

      it("that no later run inherits", function()
        local image = base:run { "true", env = { A = "1" } }
        assert.equal("[]\n", image:run("echo [$A]").stdout)
      end)
    end)

    describe("has a place and a name", function()
      it("/ and root unless told otherwise", function()
        assert.equal("/\nuid=0(root) gid=0(root)\n", base:run("pwd; id | sed 's/ groups.*//'").stdout)
      end)

      it("the working directory it is given", function()
        assert.equal("/usr/bin\n", base:run({ "pwd", cwd = "/usr/bin" }).stdout)
        raises("invalid", base.run, base, { "pwd", cwd = "usr" })
      end)

      it("the host name it is given, inside and in the files about it", function()
        assert.equal("bough\n", base:run("hostname").stdout)
        local image = base:run { shell = "hostname; cat /etc/hostname; cat /etc/hosts", hostname = "my.box" }
        local lines = fixture.lines(image.stdout)
        assert.equal("my.box", lines[1])
        assert.equal("my.box", lines[2])
        assert.match("127%.0%.1%.1%s+my%.box", image.stdout)
        assert.match("127%.0%.0%.1%s+localhost", image.stdout)
        assert.equal("", image:read "/etc/hostname")
        assert.equal("", image:read "/etc/hosts")
        raises("invalid", base.run, base, { "true", hostname = "no blanks" })
      end)

      it("no other network than its own loopback", function()
        local image = base:run "cat /proc/net/dev | tail -n +3 | cut -d: -f1"
        assert.equal("lo", image.stdout:match "^%s*(.-)%s*$")
      end)
    end)

    describe("has no more than it needs", function()
      it("of descriptors: its three streams", function()
        -- 3 is the directory that ls reads
        assert.equal("0\n1\n2\n3\n", base:run({ "ls", "/proc/self/fd" }).stdout)
      end)

      it("of processes: init and itself", function()
        local helper = lacks.solitude and "/proc/%d+ " or ""
        assert.match("^/proc/1 " .. helper .. "/proc/%d+\n$", base:run("echo /proc/[0-9]*").stdout)
      end)
    end)

    describe("leaves an image", function()
      it("while the one it ran in stays as it was", function()
        local before = fixture.names(base, "/")
        local one = base:run "echo 1 >/one; rm /etc/passwd"
        local two = base:run "ls /; test -e /one"
        assert.equal(1, two.exit_code)
        assert.same(before, fixture.names(base, "/"))
        assert.equal("1\n", one:read "/one")
        raises("not_found", one.read, one, "/etc/passwd")
        assert.is_string(base:read "/etc/passwd")
        assert.equal(base.uuid, one.parent_uuid)
        assert.equal(base.uuid, two.parent_uuid)
        assert.not_equal(one.uuid, two.uuid)
      end)

      it("without a tag, unless it is given one", function()
        assert.is_nil(base:run("true").tag)
        local image = base:run { "true", tag = "tagged-run" }
        assert.equal("tagged-run", image.tag)
        assert.equal(image, box.images:get "tagged-run")
        raises("invalid", base.run, base, { "true", tag = "has blanks" })
      end)

      it("without its tag when check fails", function()
        local first = base:run { "true", tag = "good" }
        raises("exit", base.run, base, { "false", tag = "good", check = true })
        assert.equal(first, box.images:get "good")
      end)

      it("that knows what made it", function()
        local before = os.time()
        local image = base:run "echo a   b"
        assert.equal("echo a   b", image.command)
        assert.equal("run", image.origin)
        assert.is_true(image.created_at >= before - 1 and image.created_at <= os.time() + 1)
        assert.equal(base, image:parent())
        approx(image.elapsed_time, image.result.elapsed_time, 0)
      end)

      it("but none when it is disposable", function()
        local before = #box.images:list { number = math.huge }
        local image = base:run { shell = "echo x >/x; cat /x; exit 3", disposable = true }
        assert.is_nil(image.uuid)
        assert.equal("x\n", image.stdout)
        assert.equal(3, image.exit_code)
        assert.equal(before, #box.images:list { number = math.huge })
        for _, method in ipairs {
          "run", "ls", "read", "tag_as", "untag", "session", "start", "remove", "parent",
        } do
          raises("disposed", image[method], image, "x")
        end
        raises("invalid", base.run, base, { "true", disposable = true, tag = "t" })
      end)
    end)

    describe("that is started", function()
      it("is an image in the making: results raise, the rest does not", function()
        local mark = fixture.long_time()
        local image <close> = base:start { "sleep", mark, stdin = "data" }
        assert.equal("executing", image.state)
        for _, name in ipairs {
          "stdout", "stderr", "exit_code", "result", "elapsed_time", "ok", "signal", "timed_out",
        } do
          raises("state", function() return image[name] end)
        end
        assert.is_nil(image.uuid)
        assert.is_nil(image.tag)
        assert.equal("data", image.stdin)
        assert.equal(base.uuid, image.parent_uuid)
        raises("state", image.ls, image)
        assert.match('executing "sleep ' .. mark, tostring(image), 1, true)
      end)

      it("is waited for, as often as one likes, with one run", function()
        local before = #box.images:list { number = math.huge }
        local image = base:start "echo once"
        assert.equal(image, image:wait())
        assert.equal(image, image:wait())
        assert.equal("once\n", image.stdout)
        assert.equal("succeeded", image.state)
        assert.equal(before + 1, #box.images:list { number = math.huge })
        assert.equal(image, base:run("true"):wait():parent() and image)
      end)

      it("raises the same each time when it fails", function()
        local image = base:start { "false", check = true }
        raises("exit", image.wait, image)
        raises("exit", image.wait, image)
        assert.equal("failed", image.state)
        assert.equal(1, image.exit_code)
      end)

      it("is killed by close, and whoever waits gets cancelled", function()
        local mark = fixture.long_time()
        local image = base:start { "sleep", mark }
        local waiter = bough.spawn(image.wait, image)
        bough.step(0)
        image:close()
        image:close()
        raises("cancelled", waiter.wait, waiter)
        raises("cancelled", image.wait, image)
        assert.equal("failed", image.state)
        fixture.gone("sleep " .. mark)
      end)
    end)

    it("shows in one line what it is, in every state", function()
      local done = base:run { "true", tag = "shown" }
      local failed = base:run "exit 3"
      assert.equal(('image %s… "shown" exit 0'):format(done.uuid:sub(1, 6)), tostring(done))
      assert.equal(("image %s… exit 3"):format(failed.uuid:sub(1, 6)), tostring(failed))
      assert.equal("image disposable exit 0", tostring(base:run { "true", disposable = true }))
      assert.match("exit 137 timed out", tostring(base:run { "sleep", "99", timeout = 0.1 }), 1, true)
      for _, object in ipairs { box, box.images, base, done, failed, base:session(), base:ls "/"[1] } do
        assert.is_nil(tostring(object):find "\n")
        assert.is_nil(tostring(object):find "0x")
      end
    end)
  end)
end
