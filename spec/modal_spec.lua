--- The behaviours of Modal's ContainerProcess, by their numbers; docs/coming-from-modal.md has those that have no test.

local bough = require "bough"
local fixture = require "spec.engine.fixture"
local lfs = require "lfs"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"
local system = require "system"

-- Runs a host of its own, without a terminal, and returns what came out of its stdout, and of its stderr.
local function host(script, home)
  local path = scratch.dir() .. "/stderr"
  return scratch.sh("timeout -k 5 60 setsid --wait " .. fixture.lua_command([[
    local bough = require "bough"
    local box <close> = bough.open(arg[1])
    local base = box.images:use "busybox"
    local instance <close> = base:boot()
  ]] .. script, home) .. " 2>" .. scratch.quote(path)), fixture.read_file(path)
end

describe("a process as Modal's clients have it:", function()
  local home, box, base, instance

  setup(function()
    home = scratch.store()
    box = bough.open(home)
    base = box.images:use "busybox"
    instance = base:boot()
  end)

  teardown(function()
    instance:close()
    box:close()
  end)

  local function exec(...) return instance:exec(...) end

  local function mirror() return exec { "cat", stdin = bough.PIPE } end

  -- What a loop over lines sees of these chunks, written one by one; with the ends of the lines.
  local function lines_of(...)
    local process <close> = mirror()
    for _, chunk in ipairs { ... } do process.stdin:write(chunk):flush() end
    process.stdin:close()
    local lines = {}
    for line in process.stdout:lines "L" do lines[#lines + 1] = line end
    return lines
  end

  describe("arguments", function()
    it("modal 1: one that is no string is rejected before anything starts", function()
      for _, wrong in ipairs { true, {}, print, { "nested" } } do
        local problem = raises("invalid", exec, { "touch", "/started", wrong })
        assert.match("argument 3", problem.message, 1, true)
      end
      raises("invalid", exec, { true })
      assert.equal(1, exec({ "test", "-e", "/started" }):wait())
    end)

    it("instead of modal 2 and 3: arguments arrive whole up to the kernel's limit, more is an error", function()
      local ten = { "printf", "%s", stdout = true }
      for _ = 1, 10 do ten[#ten + 1] = ("x"):rep(13000) end
      local process = exec(ten)
      assert.equal(0, process:wait())
      assert.equal(130000, #process.result.stdout)
      assert.equal(65537, #exec({ "printf", "%s", ("x"):rep(65537) }).stdout:read "a")
      local problem = raises("invalid", exec, { "printf", "%s", ("x"):rep(200000) })
      assert.match("Argument list too long", problem.message, 1, true)
    end)

    it("modal 4: a relative working directory is rejected, and an empty one", function()
      for _, wrong in ipairs { "tmp", "./tmp", "" } do
        local problem = raises("invalid", exec, { "pwd", cwd = wrong })
        assert.match("must be an absolute path", problem.message, 1, true)
      end
    end)

    it("modal 5: a time limit that is negative or 0 is rejected; fractions are none of that", function()
      for _, wrong in ipairs { -1, 0, 0 / 0, "5" } do raises("invalid", exec, { "true", timeout = wrong }) end
      assert.equal(0, exec({ "true", timeout = 5.5 }):wait())
    end)

    it("modal 6: without a word: both outputs piped, no limit, no directory, no environment, no terminal", function()
      local process = exec "echo out; echo err >&2; pwd; env | sort; test -t 0 || test -t 1 || echo no terminal"
      assert.equal("err\n", process.stderr:read "a")
      local run = base:run { "env" }
      local names = fixture.lines(run.stdout)
      names[#names + 1], names[#names + 2] = "PWD=/", "SHLVL=1" -- the shell's own
      table.sort(names)
      assert.equal("out\n/\n" .. table.concat(names, "\n") .. "\nno terminal\n", process.stdout:read "a")
      assert.equal(0, process:wait())
      assert.is_false(process.timed_out)
    end)

    it("modal 7: ignored streams are discarded", function()
      local process = exec { shell = "echo out; echo err >&2; exit 3", stdout = false, stderr = bough.DEVNULL }
      assert.is_nil(process.stdout)
      assert.is_nil(process.stderr)
      assert.equal(3, process:wait())
      assert.is_nil(process.result.stdout)
      assert.is_nil(process.result.stderr)
    end)

    it("modal 8: limit, directory and environment reach the command unchanged", function()
      local process = exec {
        shell = 'pwd; echo "$KEY"; exec sleep 900', cwd = "/usr/bin", env = { KEY = "a  b" }, timeout = 0.25,
      }
      assert.equal("/usr/bin\na  b\n", process.stdout:read "a")
      assert.equal(137, process:wait())
      local elapsed = process.result.elapsed_time
      assert.is_true(elapsed >= 0.25 and elapsed < 5, "it was killed after " .. elapsed)
    end)

    it("modal 9: pwd in /tmp with a limit of 5 s prints /tmp and exits 0", function()
      local process = exec { "pwd", cwd = "/tmp", timeout = 5 }
      assert.equal("/tmp\n", process.stdout:read "a")
      assert.equal(0, process:wait())
    end)

    it("modal 10: a value of the call beats one from before, false drops it, others are there", function()
      local own <close> = base:boot { env = { BOTH = "boot", DROPPED = "boot", BOOT = "boot" } }
      local process = own:exec {
        shell = 'printf "%s/%s/%s/%s" "$BOTH" "${DROPPED-unset}" "$BOOT" "$CALL"',
        env = { BOTH = "call", DROPPED = false, CALL = "call", NOTHING = nil },
      }
      assert.equal("call/unset/boot/call", process.stdout:read "a")
    end)
  end)

  describe("reading", function()
    it("modal 12: echo foo gives foo and its line end; a loop the same", function()
      assert.equal("foo\n", exec({ "echo", "foo" }).stdout:read "a")
      local chunks = {}
      for chunk in exec({ "echo", "foo" }).stdout:lines "c" do chunks[#chunks + 1] = chunk end
      assert.same({ "foo\n" }, chunks)
    end)

    it("modal 13: bytes arrive as they are", function()
      assert.equal("\1\2\3\0\xff", exec({ "printf", "\\x01\\x02\\x03\\000\\xff" }).stdout:read "a")
    end)

    it("modal 14: read puts all chunks together", function()
      local process <close> = mirror()
      local task = bough.spawn(process.stdout.read, process.stdout, "a")
      for _, chunk in ipairs { "one ", "t\0o ", "three" } do process.stdin:write(chunk):flush() end
      process.stdin:close()
      assert.equal("one t\0o three", task:wait())
    end)

    it("modal 15: a second read after the end is empty, and the status still 0", function()
      local process = exec { "echo", "foo" }
      assert.equal("foo\n", process.stdout:read "a")
      for _ = 1, 3 do assert.equal("", process.stdout:read "a") end
      assert.equal(0, process:wait())
    end)

    it("modal 16: a second loop after the end yields nothing, and read is empty", function()
      local process, count = exec { "echo", "foo" }, 0
      for _ = 1, 2 do
        for _ in process.stdout:lines() do count = count + 1 end
      end
      assert.equal(1, count)
      assert.equal("", process.stdout:read "a")
    end)

    it("modal 17: after wait, both streams can still be read, each once", function()
      local process = exec "echo hi; echo bye >&2"
      assert.equal(0, process:wait())
      assert.equal("hi\n", process.stdout:read "a")
      assert.equal("bye\n", process.stderr:read "a")
      assert.same({ "", "" }, { process.stdout:read "a", process.stderr:read "a" })
    end)

    it("modal 18: stdout and stderr never mix", function()
      local process = exec "i=0; while [ $i -lt 500 ]; do echo o; echo e >&2; i=$((i+1)); done"
      assert.same({ 1, 2 }, { process.stdout.fd, process.stderr.fd })
      assert.equal(("o\n"):rep(500), process.stdout:read "a")
      assert.equal(("e\n"):rep(500), process.stderr:read "a")
    end)

    it("modal 19: six messages in a row all arrive, in order", function()
      local process <close> = mirror()
      local seen = {}
      for i = 1, 6 do
        process.stdin:write("message ", i)
        seen[i] = process.stdout:read "c"
      end
      assert.same({ "message 1", "message 2", "message 3", "message 4", "message 5", "message 6" }, seen)
    end)

    it("modal 20: a loop can be left in the middle without leaving anything", function()
      local function descriptors()
        local count = 0
        for _ in lfs.dir "/proc/self/fd" do count = count + 1 end
        return count
      end
      local function loop()
        local process <close> = exec "i=0; while :; do echo $i; i=$((i+1)); done"
        local sum = 0
        for number in process.stdout:lines "n" do
          sum = sum + number
          if number == 9 then break end
        end
        return sum
      end
      loop()
      collectgarbage() -- those of earlier tests go now
      collectgarbage()
      local before = descriptors()
      for _ = 1, 3 do assert.equal(45, bough.run(loop)) end
      collectgarbage()
      assert.is_true(descriptors() <= before)
    end)

    it("modal 21: nothing is read before somebody reads: the command waits", function()
      for _, name in ipairs { "stdout", "stderr" } do
        local other = name == "stdout" and "stderr" or "stdout"
        local told = {}
        local process <close> = exec {
          shell = ("dd if=/dev/zero bs=1M count=4 %s 2>/dev/null; echo all %s"):format(
            name == "stderr" and ">&2" or "", name == "stdout" and ">&2" or ""),
          [other] = function(chunk) told[#told + 1] = chunk end,
        }
        -- what takes longer has been done in the meantime
        assert.equal(0, exec("dd if=/dev/zero bs=1M count=200 2>/dev/null | cat >/dev/null"):wait())
        assert.is_nil(process:poll())
        assert.same({}, told)
        assert.equal(4 << 20, #process[name]:read "a")
        assert.equal(0, process:wait())
        assert.same({ "all\n" }, told)
      end
    end)

    it("modal 22: a reader that is cancelled stops at once", function()
      local process <close> = mirror()
      local task = bough.spawn(process.stdout.read, process.stdout)
      bough.step(0)
      task:cancel()
      raises("cancelled", task.wait, task)
      process.stdin:write "for the next\n"
      assert.equal("for the next", process.stdout:read())
    end)
  end)

  describe("lines", function()
    it("modal 25: complete ones pass one by one", function()
      local process <close> = mirror()
      for _, line in ipairs { "one", "two", "three" } do
        process.stdin:write(line, "\n")
        assert.equal(line, process.stdout:read())
      end
    end)

    it("modal 26: one chunk of several is taken apart", function()
      assert.same({ "foo\n", "bar\n", "baz" }, lines_of "foo\nbar\nbaz")
    end)

    it("modal 27: chunks that are parts of lines are put together", function()
      assert.same({ "foobar\n", "baz" }, lines_of("foo", "bar\n", "baz"))
    end)

    it("modal 28: no input has none, input without a line end has one", function()
      assert.same({}, lines_of())
      assert.same({ "foo" }, lines_of "foo")
    end)

    it("modal 29: empty ones count", function()
      assert.same({ "\n", "\n", "a\n", "\n" }, lines_of("\n\n", "a\n", "\n"))
    end)

    it("modal 31: three echos, and one of three lines, give the same", function()
      for _, line in ipairs { "echo a; echo b; echo c", "echo 'a\nb\nc'" } do
        local lines = {}
        for text in exec(line).stdout:lines() do lines[#lines + 1] = text end
        assert.same({ "a", "b", "c" }, lines)
      end
    end)
  end)

  describe("text", function()
    it("modal 32: none, ASCII, several chunks and letters of several bytes are what was written", function()
      for _, chunks in ipairs { {}, { "plain" }, { "one ", "two" }, { "Grüße, 世界 🌳" } } do
        local process <close> = mirror()
        for _, chunk in ipairs(chunks) do process.stdin:write(chunk):flush() end
        process.stdin:close()
        assert.equal(table.concat(chunks), process.stdout:read "a")
      end
    end)

    it("modal 33: a letter that is cut in two chunks is whole in its line", function()
      assert.same({ "gr\xc3\xbcn\n" }, lines_of("gr\xc3", "\xbcn\n"))
    end)
  end)

  describe("output for the caller's own streams", function()
    it("modal 34: is on stdout when wait has returned", function()
      assert.equal("hi\nwaited\n", host([[
        local process = instance:exec { "echo", "hi", stdout = bough.INHERIT }
        process:wait()
        print "waited"
      ]], home))
    end)

    it("modal 35: of stderr is on stderr", function()
      local out, err = host([[
        local process = instance:exec { shell = "echo hi >&2", stderr = bough.INHERIT }
        process:wait()
        print "waited"
        io.stderr:write "waited\n"
      ]], home)
      assert.same({ "waited\n", "hi\nwaited\n" }, { out, err })
    end)

    it("modal 36: line by line, for a function that prints", function()
      assert.equal("> one\n> two\nwaited\n", host([[
        local function show(line) print("> " .. line) end
        local process = instance:exec { shell = "printf 'one\ntw'; sleep 0.02; echo o", stdout = show, text = "lines" }
        process:wait()
        print "waited"
      ]], home))
    end)

    it("modal 37: control bytes included", function()
      assert.equal("\1\2\3\4\5\6", host([[
        instance:exec({ "printf", "\\001\\002\\003\\004\\005\\006", stdout = bough.INHERIT }):wait()
      ]], home))
    end)

    it("modal 38: cannot be read", function()
      assert.equal("nil\n", host([[
        local process = instance:exec { "true", stdout = bough.INHERIT }
        print(process.stdout)
      ]], home))
      assert.is_false(pcall(function()
        local process <close> = exec { "true", stdout = true }
        return process.stdout:read()
      end))
    end)

    it("modal 39: a million ignored bytes hold nobody up", function()
      local process = exec { shell = "yes | head -c 1000000", stdout = false }
      assert.equal(0, process:wait())
      assert.is_nil(process.stdout)
    end)
  end)

  describe("stdin", function()
    local ECHO = "while read line; do echo $line; done"

    it("modal 40: two writes, the end, one drain: both lines come back", function()
      local process = exec { shell = ECHO, stdin = bough.PIPE }
      process.stdin:write "foo\n"
      process.stdin:write "bar\n"
      process.stdin:write_eof()
      process.stdin:drain()
      assert.equal("foo\nbar\n", process.stdout:read "a")
      assert.equal(0, process:wait())
    end)

    it("modal 41: takes texts, bytes and numbers", function()
      local process = mirror()
      process.stdin:write("text ", "\0\xff", 1, " ", 0.5):close()
      assert.equal("text \0\xff1 0.5", process.stdout:read "a")
      for _, wrong in ipairs { true, {}, print } do raises("invalid", process.stdin.write, process.stdin, wrong) end
    end)

    it("modal 42: a line made of two writes is one line", function()
      local process <close> = exec { shell = ECHO, stdin = bough.PIPE }
      process.stdin:write "foo"
      process.stdin:write "bar\n"
      assert.equal("foobar", process.stdout:read())
    end)

    it("modal 43: cat mirrors its input, and ends after the end", function()
      local process = mirror()
      process.stdin:write "this is input"
      assert.equal("this is input", process.stdout:read "c")
      assert.is_nil(process:poll())
      process.stdin:close()
      assert.equal("", process.stdout:read "a")
      assert.equal(0, process:wait())
    end)

    it("modal 44: a write after the end raises, drained or not", function()
      local process = mirror()
      process.stdin:write "x"
      process.stdin:write_eof()
      raises("closed", process.stdin.write, process.stdin, "y")
      process.stdin:drain()
      raises("closed", process.stdin.write, process.stdin, "y")
      assert.equal("x", process.stdout:read "a")
    end)

    it("modal 45: a write after the process has ended raises", function()
      local process = exec { "true", stdin = bough.PIPE }
      process:wait()
      local problem = raises("closed", function() process.stdin:write("x"):drain() end)
      assert.match("no longer reads", problem.message, 1, true)
    end)

    it("modal 46: an end without data is an end", function()
      local process = mirror()
      process.stdin:write_eof()
      process.stdin:drain()
      assert.equal("", process.stdout:read "a")
      assert.equal(0, process.stdin.written)
    end)

    it("modal 49: data and end travel together", function()
      local process = mirror()
      process.stdin:write("data"):write_eof()
      assert.equal("data", process.stdout:read "a")
      assert.equal(0, process:wait())
    end)

    it("modal 52: more than fits at once arrives complete", function()
      local path = scratch.dir() .. "/large"
      scratch.sh("seq 1 300000 >" .. scratch.quote(path))
      local sum = scratch.sh("md5sum <" .. scratch.quote(path)):match "%x+"
      local process = exec { "md5sum", stdin = bough.file(path) }
      assert.equal(sum, process.stdout:read "a":match "%x+")
      process = exec { "md5sum", stdin = bough.PIPE }
      process.stdin:write(fixture.read_file(path)):close()
      assert.equal(sum, process.stdout:read "a":match "%x+")
    end)

    it("modal 53: an empty source still closes it", function()
      for _, source in ipairs { bough.file(scratch.file ""), function() end } do
        local process = exec { "wc", "-c", stdin = source, stdout = true }
        assert.equal(0, process:wait())
        assert.equal("0\n", process.result.stdout)
      end
      assert.equal(0, exec({ "cat", stdin = "" }):wait())
    end)

    it("modal 58: an error of the source comes out, and the command does not take it for the end", function()
      local calls = 0
      local process = exec { shell = "cat >/got; echo complete >/complete", stdin = function()
        calls = calls + 1
        if calls == 1 then return "first\n" end
        error("the disk is gone", 0)
      end }
      local ok, problem = pcall(process.wait, process)
      assert.is_false(ok)
      assert.equal("the disk is gone", problem)
      fixture.until_true("its end", function() return instance.live == 0 end)
      assert.equal(1, exec({ "test", "-e", "/complete" }):wait())
    end)

    it("modal 59: a command that reads less than there is has done nothing wrong", function()
      local process = exec { "head", "-c", "3", stdin = ("x"):rep(3 << 20), stdout = true }
      assert.equal(0, process:wait())
      assert.equal("xxx", process.result.stdout)
    end)
  end)

  describe("status", function()
    it("modal 60: nil while it runs, then the code, which wait takes its time for", function()
      local process = exec "sleep 0.3 && exit 42"
      local started = system.monotime()
      assert.is_nil(process:poll())
      assert.is_nil(process.returncode)
      assert.equal(42, process:wait())
      assert.is_true(system.monotime() - started >= 0.25)
      assert.same({ 42, 42 }, { process:poll(), process.returncode })
      assert.equal(42, exec("exit 42"):wait())
    end)

    it("modal 61: a shell that kills itself has 137", function()
      local process = exec "kill -9 $$"
      assert.equal(137, process:wait())
      assert.equal(9, process.signal)
    end)

    it("modal 62: as text it tells which one it is", function()
      local process = exec { "sleep", "900" }
      assert.equal(('process %d "sleep 900" running'):format(process.pid), tostring(process))
      process:kill()
      process:wait()
      assert.equal(('process %d "sleep 900" signal 9'):format(process.pid), tostring(process))
    end)
  end)

  describe("time limits", function()
    it("modal 64: wait comes back when it is over, with 137", function()
      local process = exec { "sleep", "999", timeout = 0.4 }
      local started = system.monotime()
      assert.equal(137, process:wait())
      local took = system.monotime() - started
      assert.is_true(took > 0.3 and took < 5, "it took " .. took)
      assert.is_true(process.timed_out)
    end)

    it("modal 65: poll tells it too: nil at first", function()
      local process = exec { "sleep", "999", timeout = 0.2 }
      assert.is_nil(process:poll())
      fixture.until_true("the limit", function() return process:poll() end)
      assert.equal(137, process.returncode)
      assert.is_true(process.timed_out)
      assert.is_true(process.result.elapsed_time >= 0.2)
    end)

    it("modal 66: read returns what was there, when it is over", function()
      local process = exec { shell = "echo hi; sleep 999", timeout = 0.3 }
      local started = system.monotime()
      assert.equal("hi\n", process.stdout:read "a")
      local took = system.monotime() - started
      assert.is_true(took > 0.2 and took < 5, "it took " .. took)
      assert.equal(137, process:wait())
    end)

    it("modal 67: a loop ends then, with the lines so far", function()
      local process, lines = exec { shell = "echo one; echo two; printf part; sleep 999", timeout = 0.2 }, {}
      for line in process.stdout:lines() do lines[#lines + 1] = line end
      assert.same({ "one", "two", "part" }, lines)
      assert.equal(137, process:wait())
    end)

    it("is not told of one that ended in time, however late one asks", function()
      local process = exec { "true", timeout = 0.1 }
      fixture.until_true("its end", function() return process:poll() end)
      bough.sleep(0.12)
      assert.equal(0, process:wait())
      assert.is_false(process.timed_out)
    end)
  end)

  describe("terminals", function()
    it("modal 77: pty makes one, and echo hello in it ends with 0", function()
      local process = exec { shell = "test -t 0 && test -t 1 && test -t 2 && echo hello", pty = true }
      assert.equal("hello\r\n", process.stdout:read "a")
      assert.equal(0, process:wait())
    end)

    it("modal 78: it is 24 by 80 and an xterm-256color, where the host has none", function()
      assert.equal("24 80 xterm-256color\r\n", host([[
        local process = instance:exec { shell = "echo $(stty size) $TERM", pty = true }
        io.write(process.stdout:read "a")
      ]], home))
    end)

    it("modal 79: an interactive shell prompts, shows what commands say, and ends after exit", function()
      local process <close> = exec { "sh", pty = true, env = { PS1 = "prompt: " } }
      local shown = ""
      local function until_shown(text)
        while not shown:find(text, 1, true) do shown = shown .. assert(process.stdout:read "c", shown) end
      end
      until_shown "prompt: "
      process.stdin:write "echo $((40 + 2))\n"
      until_shown "\r\n42\r\nprompt: "
      process.stdin:write "exit 5\n"
      shown = shown .. process.stdout:read "a"
      assert.match("exit 5\r\n$", shown)
      assert.equal(5, process:wait())
    end)

    it("modal 81: without pty there is none; a list is arguments, a string a line for the shell", function()
      assert.equal(1, exec({ "test", "-t", "0" }):wait())
      assert.equal("a b|c|", exec({ "printf", "%s|", "a b", "c" }).stdout:read "a")
      assert.equal("a|b|", exec("printf '%s|' a b").stdout:read "a")
    end)

    it("modal 82: a shell in what is over raises, and says why", function()
      local own <close> = base:boot()
      own:stop()
      local problem = raises("closed", own.shell, own)
      assert.match("the sandbox has ended", problem.message, 1, true)
    end)

    it("modal 83: nothing but the command's own output is printed", function()
      local out, err = host([[
        local process = instance:exec { shell = "echo shown to its reader", pty = true }
        assert(process.stdout:read "a" == "shown to its reader\r\n")
        process:wait()
        instance:commit()
        instance:stop()
      ]], home)
      assert.same({ "", "" }, { out, err })
    end)

    it("modal 84: what belongs to the sandbox is refused when it runs already", function()
      for name, value in pairs { network = "host", hostname = "x", limits = { pids = 9 }, disposable = true } do
        local problem = raises("invalid", exec, { "true", [name] = value })
        assert.match("running already", problem.message, 1, true)
      end
    end)
  end)

  describe("of the sandbox", function()
    it("modal 85: its state is running while it does, and a process's code that of the process", function()
      local own <close> = base:boot()
      assert.equal("running", own.state)
      assert.equal(42, own:exec("exit 42"):wait())
      assert.equal("running", own.state)
      own:stop()
      assert.equal("stopped", own.state)
    end)

    it("modal 86: stopping it ends its processes, with the code of what ended them, told again and again", function()
      local own <close> = base:boot()
      local asked = own:exec { "sleep", "900" }
      local forced = own:exec "trap '' TERM; echo ready; while :; do sleep 900; done"
      assert.equal("ready", forced.stdout:read())
      own:stop(0.1)
      for _ = 1, 2 do assert.same({ 143, 137 }, { asked:wait(), forced:wait() }) end
    end)

    it("modal 87: exec after that is an error with the reason", function()
      local own = base:boot()
      own:stop()
      assert.match("the sandbox has ended", raises("closed", own.exec, own, "true").message, 1, true)
      own:close()
      assert.match("the instance is closed", raises("closed", own.exec, own, "true").message, 1, true)
    end)

    it("instead of modal 89: what was written can be read after the sandbox's end", function()
      local own = base:boot()
      local process = own:exec "echo out; echo err >&2"
      process:wait()
      own:close()
      assert.same({ "out\n", "err\n" }, { process.stdout:read "a", process.stderr:read "a" })
    end)

    it("modal 90: a second end of it does nothing", function()
      local own = base:boot()
      for _ = 1, 2 do own:stop() end
      for _ = 1, 2 do own:close() end
      assert.equal("closed", own.state)
    end)
  end)
end)

describe("docs/coming-from-modal.md", function()
  local COUNT = 90

  it("names each behaviour that has no test, and no other", function()
    local tested, named = {}, {}
    for number in fixture.read_file "spec/modal_spec.lua":gmatch 'it%("modal (%d+): ' do
      tested[math.tointeger(number)] = true
    end
    local table_of = fixture.read_file "docs/coming-from-modal.md":match "## The numbered behaviours\n(.*)$"
    for row in table_of:gmatch "[^\n]+" do
      local number, there, here = row:match "^| (%d+) | (.-) | (.-) |$"
      if number then
        assert.is_true(#there > 0 and #here > 0, row)
        assert.is_nil(named[math.tointeger(number)], "twice: " .. row)
        named[math.tointeger(number)] = true
      else
        assert.is_nil(row:find "^| %d", row)
      end
    end
    for number = 1, COUNT do
      assert.is_true(tested[number] or named[number], ("%d is neither tested nor named"):format(number))
      assert.is_false(tested[number] and named[number] or false, ("%d is tested and named"):format(number))
    end
    for number in pairs(tested) do assert.is_true(number >= 1 and number <= COUNT) end
  end)

  it("shows a program that does what it says", function()
    local code = fixture.read_file "docs/coming-from-modal.md":match "```lua\n(.-)```"
    assert.equal("got one\ngot two\n0\n", scratch.sh("timeout -k 5 60 " .. fixture.lua_command([[
      local bough = require "bough"
      local box <close> = bough.open(arg[1])
      local base = box.images:use "busybox"
    ]] .. code, scratch.store())))
  end)
end)
