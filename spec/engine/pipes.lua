--- The streams of live processes: readers, writers, and what else stdin, stdout and stderr may be.

local bough = require "bough"
local fixture = require "spec.engine.fixture"
local places = require "spec.support.places"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

local MIB = 1 << 20

return function(open, lacks)
  describe("of a live process", function()
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

    local function printer(text, options)
      options = options or {}
      options[1], options[2], options.stdin = "printf", "%s", nil
      options[3] = text
      return instance:exec(options)
    end

    -- `cat`, both ends of which are ours.
    local function mirror() return instance:exec { "cat", stdin = bough.PIPE } end

    local idles = 0

    -- A command that does nothing with its streams until the function that comes with it is called; then `shell`.
    local function idle(shell)
      idles = idles + 1
      local fifo = "/idle." .. idles
      local process = instance:exec {
        shell = ("mkfifo %s; echo ready >&2; read x <%s; %s"):format(fifo, fifo, shell), stdin = bough.PIPE,
      }
      assert.equal("ready", process.stderr:read())
      return process, function() assert.equal(0, instance:exec("echo >" .. fifo):wait()) end
    end

    -- Another command of the sandbox moves that many bytes: what takes no longer has been done meanwhile.
    local function meanwhile(mib)
      local process = instance:exec(("dd if=/dev/zero bs=1M count=%d 2>/dev/null | cat >/dev/null"):format(mib))
      assert.equal(0, process:wait())
    end

    describe("a reader reads", function()
      everywhere("lines, with or without their ends", function()
        local reader = printer("one\n\ntwo\r\nrest").stdout
        assert.equal("one", reader:read())
        assert.equal("\n", reader:read "L")
        assert.equal("two\r", reader:read "l")
        assert.equal("rest", reader:read "L")
        for _ = 1, 2 do assert.is_nil(reader:read()) end
      end)

      everywhere("numbers, several things at once, nil for the first that is not there", function()
        local reader = printer(" 12 0x1F -3.5e2 word\nrest").stdout
        local a, b, c, d = reader:read("n", "n", "n", "n")
        assert.same({ 12, 31, -350.0 }, { a, b, c, d })
        assert.same({ "word", "re", "st" }, { reader:read("l", 2, "a") })
        assert.same({ "", n = 2 }, table.pack(reader:read("a", "l")))
      end)

      everywhere("a number of bytes: as many, or what is left; none to ask whether there are more", function()
        local reader = printer("abcdefg").stdout
        assert.equal("abc", reader:read(3))
        assert.equal("", reader:read(0))
        assert.equal("defg", reader:read(99))
        assert.is_nil(reader:read(0))
        assert.is_nil(reader:read(1))
      end)

      everywhere("all there is; at the end that is nothing, again and again", function()
        local reader = instance:exec({ "printf", "x\\n\\000y" }).stdout
        assert.equal("x\n\0y", reader:read "a")
        for _ = 1, 2 do assert.equal("", reader:read "a") end
        assert.is_nil(reader:read "c")
      end)

      everywhere("whatever is there, and waits only for the first of it", function()
        local process <close> = mirror()
        for _, chunk in ipairs { "a", "bc", "d\n" } do
          process.stdin:write(chunk)
          assert.equal(chunk, process.stdout:read "c")
        end
        process.stdin:close()
        assert.is_nil(process.stdout:read "c")
      end)

      everywhere("in loops over lines and whatever else", function()
        local seen = {}
        for line in printer("a\nb\n\nc").stdout:lines() do seen[#seen + 1] = line end
        assert.same({ "a", "b", "", "c" }, seen)
        local pairs_seen = {}
        for number, rest in printer("1 one\n2 two\n").stdout:lines("n", "L") do
          pairs_seen[#pairs_seen + 1] = number .. rest
        end
        assert.same({ "1 one\n", "2 two\n" }, pairs_seen)
        local process <close> = mirror()
        process.stdin:write "1\n2\n3\n"
        for line in process.stdout:lines() do
          if line == "2" then break end
        end
        assert.equal("3", process.stdout:read()) -- a loop that is left takes no more than it gave
      end)

      it("the formats of io.read as they were written before 5.3", function()
        local reader = printer("1\nx\nall").stdout
        assert.same({ 1, "", "x\n", "all" }, { reader:read("*n", "*l", "*L", "*a") })
      end)

      it("nothing with formats that are none", function()
        local process <close> = mirror()
        for _, wrong in ipairs { "x", "", -1, 1.5, true, {} } do
          raises("invalid", process.stdout.read, process.stdout, wrong)
          raises("invalid", process.stdout.lines, process.stdout, wrong)
        end
        raises("invalid", process.stdout.read, process.stdin)
        process.stdin:write "x\n"
        assert.equal("x", process.stdout:read())
      end)

      it("bytes as they are", function()
        local all = {}
        for byte = 0, 255 do all[#all + 1] = string.char(byte) end
        local text = table.concat(all):rep(500)
        local process <close> = mirror()
        local writer = bough.spawn(function() process.stdin:write(text):close() end)
        assert.is_true(process.stdout:read "a" == text)
        writer:wait()
      end)

      it("a line of any length", function()
        local process = instance:exec "dd if=/dev/zero bs=1M count=3 2>/dev/null | tr '\\0' x; echo; echo y"
        assert.equal(3 * MIB, #process.stdout:read())
        assert.equal("y", process.stdout:read())
      end)

      everywhere("what it is: its number, whether it is closed", function()
        local process = printer "x"
        assert.same({ 1, 2 }, { process.stdout.fd, process.stderr.fd })
        assert.is_false(process.stdout.closed)
        process.stdout:read "a"
        assert.equal("reader stdout (at end)", tostring(process.stdout))
        process.stdout:close()
        process.stdout:close()
        assert.is_true(process.stdout.closed)
        assert.equal("reader stdout (closed)", tostring(process.stdout))
        raises("closed", process.stdout.read, process.stdout)
        raises("closed", process.stdout.lines, process.stdout)
        assert.equal(0, process:wait())
      end)

      it("L9.26 10 MiB while the command runs, and after it was waited for", function()
        for _, waits in ipairs { false, true } do
          local process = instance:exec { "dd", "if=/dev/zero", "bs=1M", "count=10" }
          if waits then assert.equal(0, process:wait()) end
          assert.equal(10 * MIB, #process.stdout:read "a")
          assert.match("10%+0 records out", process.stderr:read "a")
          assert.equal(0, process:wait())
        end
      end)

      it("one stream while the other is full: that is put aside, in order", function()
        local process = instance:exec {
          shell = "i=0; while [ $i -lt 40000 ]; do echo line $i >&2; i=$((i+1)); done; echo done",
        }
        assert.equal("done", process.stdout:read())
        local count = 0
        for number in process.stderr:lines "L" do
          assert.equal(("line %d\n"):format(count), number)
          count = count + 1
        end
        assert.equal(40000, count)
      end)

      it("on after a deadline or a cancellation: nothing is lost", function()
        local process <close> = mirror()
        process.stdin:write "ab"
        raises("timeout", bough.deadline, 0.02, process.stdout.read, process.stdout, "l")
        raises("timeout", bough.deadline, 0.02, process.stdout.read, process.stdout, 5)
        local task = bough.spawn(process.stdout.read, process.stdout, "a")
        for _ = 1, 10 do bough.step(0) end
        task:cancel()
        raises("cancelled", task.wait, task)
        process.stdin:write "c\n"
        assert.equal("abc", process.stdout:read())
      end)

      it("no more when it is closed under somebody who waits", function()
        local process <close> = mirror()
        local task = bough.spawn(pcall, process.stdout.read, process.stdout)
        for _ = 1, 10 do bough.step(0) end
        assert.equal("waiting", task.status)
        process.stdout:close()
        local ok, problem = task:wait()
        assert.is_false(ok)
        assert.equal("closed", problem.kind)
        assert.match("stdout is closed", problem.message, 1, true)
      end)

      it("each byte for one of several who wait", function()
        local process <close> = mirror()
        local tasks = {}
        for i = 1, 10 do tasks[i] = bough.spawn(process.stdout.read, process.stdout) end
        for i = 1, 10 do process.stdin:write(i, "\n") end
        local seen = {}
        for i, task in ipairs(tasks) do seen[i] = math.tointeger(task:wait()) end
        table.sort(seen)
        assert.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, seen)
      end)

      if not lacks.remains then
        it("on after the command's end, to the true end", function()
          local process = instance:exec "echo first; (sleep 0.1; echo second) &"
          assert.equal(0, process:wait())
          assert.equal("first\nsecond\n", process.stdout:read "a")
        end)
      end

      if not lacks.unbounded then
        it("slowly: the command waits, and memory stays flat", function()
          local lines = {}
          local process <close> = instance:exec {
            shell = "dd if=/dev/zero bs=1M count=192 2>/dev/null; echo written >&2",
            stderr = function(line) lines[#lines + 1] = line end, text = "lines",
          }
          assert.equal(1, #process.stdout:read(1))
          collectgarbage()
          local before, peak = fixture.resident(), 0
          meanwhile(256)
          assert.is_nil(process:poll())
          assert.same({}, lines)
          local count = 1
          while true do
            local chunk = process.stdout:read "c"
            if not chunk then break end
            count = count + #chunk
            peak = math.max(peak, fixture.resident())
          end
          assert.equal(192 * MIB, count)
          assert.equal(0, process:wait())
          assert.same({ "written" }, lines)
          assert.is_true(peak - before < 48 * MIB, ("grew by %d KiB"):format((peak - before) // 1024))
        end)
      end
    end)

    describe("a writer writes", function()
      everywhere("strings and numbers, and returns itself", function()
        local process <close> = mirror()
        assert.equal(process.stdin, process.stdin:write("a", 1, " ", 2.5, "\n"))
        assert.equal(process.stdin, process.stdin:flush())
        assert.equal(process.stdin, process.stdin:drain())
        assert.equal(7, process.stdin.written)
        assert.equal("a1 2.5", process.stdout:read())
        raises("invalid", process.stdin.write, process.stdin, nil)
        raises("invalid", process.stdin.write, process.stdin, "x", {})
        raises("invalid", process.stdin.write, process.stdout, "x")
        process.stdin:write() -- nothing
        process.stdin:write_eof()
        assert.equal("", process.stdout:read "a") -- of the wrong ones nothing has gone
      end)

      everywhere("nothing after its end, which may be told twice", function()
        local process <close> = mirror()
        process.stdin:write "last"
        assert.is_false(process.stdin.closed)
        process.stdin:close()
        process.stdin:close()
        assert.is_true(process.stdin.closed)
        assert.equal("writer stdin (closed)", tostring(process.stdin))
        local problem = raises("closed", process.stdin.write, process.stdin, "x")
        assert.match("stdin is closed", problem.message, 1, true)
        assert.equal("last", process.stdout:read "a")
      end)

      it("when there is room, and lets others go on until then", function()
        local size, ticks = 4 * MIB, 0
        local process <close>, go_on = idle "wc -c"
        local task = bough.spawn(function() process.stdin:write(("x"):rep(size)):close() end)
        meanwhile(64)
        assert.equal("waiting", task.status)
        assert.is_true(process.stdin.written < size)
        local ticker = bough.spawn(function()
          while ticks < 20 do
            ticks = ticks + 1
            bough.sleep(0)
          end
        end)
        ticker:wait()
        assert.equal("waiting", task.status)
        go_on()
        task:wait()
        assert.equal(size, process.stdout:read "n")
      end)

      if not lacks.flushes then
        it("to the last byte before flush returns", function()
          for _, reads in ipairs { true, false } do
            local process <close>, go_on = idle "cat >/dev/null"
            local filler = bough.spawn(pcall, function()
              while true do process.stdin:write(("x"):rep(10000)) end
            end)
            for _ = 1, 10 do bough.step(0) end
            assert.equal("waiting", filler.status) -- there is no room at all
            filler:cancel()
            local flusher = bough.spawn(pcall, process.stdin.flush, process.stdin)
            for _ = 1, 10 do bough.step(0) end
            assert.equal("waiting", flusher.status)
            if reads then go_on() else process:kill() end
            local ok, problem = flusher:wait()
            assert.equal(reads, ok)
            if not reads then assert.equal("closed", problem.kind) end
          end
        end)
      end

      it("texts of several tasks whole, in their order", function()
        local process <close> = mirror()
        local size, tasks = 300000, {}
        for i = 1, 5 do
          tasks[i] = bough.spawn(function() process.stdin:write((tostring(i)):rep(size)) end)
        end
        for i = 1, 5 do assert.is_true(process.stdout:read(size) == tostring(i):rep(size), "text " .. i) end
        for _, task in ipairs(tasks) do task:wait() end
      end)

      everywhere("to nobody: kind closed, never a signal", function()
        local process = instance:exec { shell = "exec <&-; echo deaf; sleep 900", stdin = bough.PIPE }
        assert.equal("deaf", process.stdout:read())
        local good, problem
        fixture.until_true("that nobody has the other end", function()
          good, problem = pcall(process.stdin.write, process.stdin, "x")
          return not good
        end)
        assert.equal("closed", problem.kind)
        assert.match("no longer reads its stdin", problem.message, 1, true)
        raises("closed", process.stdin.write, process.stdin, "x")
        process.stdin:close()
        process:kill()
        process:wait()
        local over = instance:exec { "true", stdin = bough.PIPE }
        over:wait()
        raises("closed", over.stdin.write, over.stdin, "x")
      end)

      it("in part, when nobody reads the rest", function()
        local process = instance:exec { "head", "-c", "5", stdin = bough.PIPE }
        raises("closed", process.stdin.write, process.stdin, ("x"):rep(8 * MIB))
        assert.equal("xxxxx", process.stdout:read "a")
        assert.equal(0, process:wait())
      end)

      it("no more when it is closed under somebody who waits for room", function()
        local process <close>, go_on = idle "cat >/dev/null"
        local task = bough.spawn(pcall, process.stdin.write, process.stdin, ("x"):rep(4 * MIB))
        for _ = 1, 10 do bough.step(0) end
        assert.equal("waiting", task.status)
        process.stdin:close()
        local ok, problem = task:wait()
        assert.is_false(ok)
        assert.equal("closed", problem.kind)
        go_on()
        assert.equal(0, process:wait())
      end)
    end)

    describe("stdout and stderr", function()
      local BOTH = "echo out; echo err >&2"

      everywhere("are pipes unless told otherwise", function()
        local process = instance:exec(BOTH)
        assert.same({ "out\n", "err\n" }, { process.stdout:read "a", process.stderr:read "a" })
        assert.is_nil(process.stdin)
        process:wait()
        assert.is_nil(process.result.stdout)
      end)

      everywhere("are captured with true", function()
        local process = instance:exec { shell = BOTH, stdout = true, stderr = true }
        assert.is_nil(process.stdout)
        assert.is_nil(process.stderr)
        process:wait()
        assert.same({ "out\n", "err\n" }, { process.result.stdout, process.result.stderr })
      end)

      it("L9.23 are cut at the limit when captured, and what was dropped is told", function()
        local process = instance:exec {
          shell = "printf hello; printf four >&2", stdout = true, stderr = true, truncate_output_at = 4,
        }
        process:wait()
        local result = process.result
        assert.same({ "hell", "four", { stdout = 1 } }, { result.stdout, result.stderr, result.truncated })
        process = instance:exec { "dd", "if=/dev/zero", "bs=1M", "count=3", stdout = true }
        process:wait()
        assert.equal(MIB, #process.result.stdout)
        assert.equal(2 * MIB, process.result.truncated.stdout)
      end)

      it("L9.24 are dropped with false, which keeps nothing in memory", function()
        local before = collectgarbage "count"
        local process = instance:exec {
          "dd", "if=/dev/zero", "bs=1M", "count=64", stdout = false, stderr = bough.DEVNULL,
        }
        assert.is_nil(process.stdout)
        assert.is_nil(process.stderr)
        assert.equal(0, process:wait())
        assert.is_nil(process.result.stdout)
        assert.is_true(collectgarbage "count" - before < 1024)
      end)

      everywhere("L9.25 go to files, Lua files and functions: each byte once, handles stay open", function()
        local path = scratch.dir() .. "/out"
        instance:exec({ shell = BOTH, stdout = path }):wait()
        assert.equal("out\n", fixture.read_file(path))
        instance:exec({ "dd", "if=/dev/zero", "bs=1M", "count=3", stdout = path, stderr = false }):wait()
        assert.equal(3 * MIB, #fixture.read_file(path))
        local file <close> = assert(io.open(path, "w"))
        file:write "before\n"
        instance:exec({ shell = BOTH, stdout = file, stderr = file }):wait()
        file:write "after\n"
        file:flush()
        assert.match("^before\n%a+\n%a+\nafter\n$", fixture.read_file(path))
        local chunks, lines = {}, {}
        instance:exec({
          shell = [[printf 'one\n\ntw'; sleep 0.02; printf 'o\nthree'; echo err >&2]], text = "lines",
          stdout = function(line) lines[#lines + 1] = line end,
          stderr = function(chunk) chunks[#chunks + 1] = chunk end,
        }):wait()
        assert.same({ "one", "", "two", "three" }, lines)
        assert.same({ "err" }, chunks)
      end)

      it("leave a file as it was until the command has ended", function()
        local path = scratch.file "before"
        do
          local process <close> = instance:exec { shell = "echo after; echo ready >&2; sleep 900", stdout = path }
          assert.equal("ready", process.stderr:read())
          assert.equal("before", fixture.read_file(path))
        end
        assert.equal("before", fixture.read_file(path)) -- it was given up
        instance:exec({ "echo", "after", stdout = path }):wait()
        assert.equal("after\n", fixture.read_file(path))
      end)

      it("to a function that raises kill the command, and the error comes out of wait", function()
        local process = instance:exec {
          shell = "echo x; sleep 900", stdout = function() error("enough", 0) end,
        }
        local ok, problem = pcall(process.wait, process)
        assert.is_false(ok)
        assert.equal("enough", problem)
        fixture.until_true("its end", function() return instance.live == 0 end)
      end)

      everywhere("L9.27 joined with stderr = STDOUT keep the order of the writes", function()
        local process = instance:exec {
          shell = "i=0; while [ $i -lt 100 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done", stderr = bough.STDOUT,
        }
        assert.is_nil(process.stderr)
        local expected = {}
        for i = 0, 99 do expected[#expected + 1] = ("o%d\ne%d\n"):format(i, i) end
        assert.equal(table.concat(expected), process.stdout:read "a")
        raises("invalid", instance.exec, instance, { "true", stdout = bough.STDOUT })
      end)
    end)

    describe("stdin", function()
      everywhere("L9.28 is empty unless given", function()
        local process = instance:exec { "cat" }
        assert.is_nil(process.stdin)
        assert.equal("", process.stdout:read "a")
        assert.equal("", instance:exec({ "cat", stdin = "" }).stdout:read "a")
      end)

      everywhere("L9.28 comes from a string, a path, a Lua file, a function; again from string and path", function()
        local path = scratch.file "from a file\0"
        for _ = 1, 2 do
          assert.equal("a\0b", instance:exec({ "cat", stdin = "a\0b" }).stdout:read "a")
          assert.equal("from a file\0", instance:exec({ "cat", stdin = bough.file(path) }).stdout:read "a")
        end
        local file <close> = assert(io.open(path))
        assert.equal("from a file\0", instance:exec({ "cat", stdin = file }).stdout:read "a")
        assert.equal("file", io.type(file))
        local left = 3
        local process = instance:exec { "cat", stdin = function()
          left = left - 1
          return left >= 0 and ("x"):rep(100000) or nil
        end, stdout = true }
        process:wait()
        assert.equal(300000, #process.result.stdout)
      end)

      it("may be left unread", function()
        assert.equal(0, instance:exec({ "true", stdin = ("x"):rep(MIB) }):wait())
      end)
    end)

    describe("between two processes", function()
      it("bytes go from one to the other, which ends both in their order", function()
        local one = instance:exec "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done"
        local two = instance:exec { "wc", "-l", stdin = one.stdout }
        assert.equal(20000, two.stdout:read "n")
        assert.same({ 0, 0 }, { one:wait(), two:wait() })
      end)

      it("what was read before stays, what was read ahead goes first", function()
        local one = instance:exec { "cat", stdin = bough.PIPE }
        one.stdin:write "first\nsecond\nthird\n"
        assert.equal("first", one.stdout:read())
        local two <close> = instance:exec { "cat", stdin = one.stdout }
        one.stdin:write "fourth\n":close()
        assert.equal("second\nthird\nfourth\n", two.stdout:read "a")
      end)

      it("the stream that was handed over is nobody else's", function()
        local one <close> = mirror()
        local two <close> = instance:exec { "cat", stdin = one.stdout }
        local problem = raises("closed", one.stdout.read, one.stdout)
        assert.match("stdout", problem.message, 1, true)
        assert.match("handed to another command", problem.message, 1, true)
        raises("closed", instance.exec, instance, { "cat", stdin = one.stdout })
        one.stdin:write "x\n"
        assert.equal("x", two.stdout:read())
      end)

      it("a writer takes output, of both streams if it is asked to", function()
        local two <close> = mirror()
        local one = instance:exec { shell = "echo out; echo err >&2", stdout = two.stdin, stderr = two.stdin }
        assert.equal(0, one:wait())
        assert.equal("out\nerr\n", two.stdout:read "a")
        raises("closed", two.stdin.write, two.stdin, "x")
        assert.equal(0, two:wait())
      end)

      it("the sandboxes may be several, and a reader that ends early ends the writer", function()
        local session <close> = base:session()
        local endless = base:popen { "yes", stderr = false }
        local head = session:popen { "head", "-n", "2", stdin = endless.stdout }
        assert.equal("y\ny\n", head.stdout:read "a")
        assert.equal(0, head:wait())
        assert.is_true(endless:wait() ~= 0)
      end)

      it("a pipe that Lua made has two ends, for Lua and for commands", function()
        local reader, writer = bough.pipe()
        local process = instance:exec { shell = "echo one; echo two", stdout = writer }
        assert.equal("one\ntwo\n", reader:read "a")
        assert.equal(0, process:wait())
        reader, writer = bough.pipe "given"
        process = instance:exec { "cat", stdin = reader }
        writer:write "by Lua":close()
        assert.equal("by Lua", process.stdout:read "a")
        reader, writer = bough.pipe()
        writer:write "within":close()
        assert.equal("within", reader:read "a")
        reader:close()
      end)
    end)

    it("both are closed with their process, and its output can be read after its end without it", function()
      local reader
      do
        local process = printer "kept"
        process:wait()
        reader = process.stdout
      end
      collectgarbage()
      collectgarbage()
      assert.equal("kept", reader:read "a")
    end)
  end)
end
