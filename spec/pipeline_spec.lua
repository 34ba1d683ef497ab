-- luacheck: ignore 512 (loops that are left at once are what is tested)

local bough = require "bough"
local core = require "bough.core"
local command = require "bough.command"
local host = require "bough.host"
local safe = require "bough.safe"
local fixture = require "spec.engine.fixture"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

local read_file = fixture.read_file

-- The commands here run on this machine. `started` counts them.
local started = 0

local function popen(...)
  started = started + 1
  return host.popen(...)
end

local function cmd(line, opts) return command.new(popen, line, opts, "cmd") end

local function upper(input, output)
  for chunk in input:lines "c" do output:write(chunk:upper()) end
end

describe("bough.command", function()
  it("is checked when it is made", function()
    local problem = raises("invalid", cmd, { "ls", timout = 1 })
    assert.match('did you mean "timeout"', problem.message)
    raises("invalid", cmd, {})
    raises("invalid", cmd, { "ls", nil, "-l" })
    raises("invalid", cmd, 5)
    raises("invalid", cmd, "ls", { stdout = {} })
    assert.match("popen", raises("invalid", cmd, { "vi", pty = true }).message)
  end)

  it("keeps what it was given", function()
    local words = { "echo", "one", env = { NAME = "x" } }
    local echo = cmd(words)
    words[2], words.env.NAME = "two", nil
    assert.equal("one\n", echo:read())
  end)

  it("shows what it runs, and runs nothing by that", function()
    local before = started
    assert.equal("command sort -u", tostring(cmd { "sort", "-u" }))
    assert.equal("pipeline ls | wc -l", tostring(cmd "ls" | cmd "wc -l"))
    assert.equal("ls | wc -l", (cmd "ls" | cmd "wc -l").command)
    assert.equal(before, started)
  end)

  it("runs anew each time", function()
    local count = cmd "date +%N"
    assert.not_equal(count:read(), count:read())
  end)

  it("never changes", function()
    raises("invalid", function() cmd("ls").command = "rm" end)
    raises("invalid", function() (cmd "ls" | cmd "wc").x = 1 end)
  end)
end)

describe("bough.pipeline", function()
  describe("|", function()
    it("joins commands", function()
      local numbers = cmd "seq 1 20" | cmd "grep 1" | cmd { "wc", "-l" }
      assert.equal(11, numbers:read "n")
    end)

    it("does not mind parentheses", function()
      local a, b, c = cmd "echo x", cmd "tr x y", cmd "tr y z"
      assert.equal("z\n", ((a | b) | c):read())
      assert.equal("z\n", (a | (b | c)):read())
      assert.equal(tostring((a | b) | c), tostring(a | (b | c)))
    end)

    it("lets two longer ones share a part", function()
      local shared = cmd "printf 'b\\na\\n'" | cmd "sort"
      local first, second = shared | cmd "head -1", shared | cmd "tail -1"
      assert.equal("a\n", first:read())
      assert.equal("b\n", second:read())
      assert.equal("a\nb\n", shared:read())
      assert.equal("A\nB\n", (shared | upper):read())
    end)

    it("takes data in front", function()
      assert.equal("a\nb\n", ("b\na\n" | cmd "sort"):read())
      assert.equal("10", ("10" | cmd "cat"):read())
      assert.equal("", ("" | cmd "cat"):read())
      assert.equal("\0\255", (bough.bytes "\0\255" | cmd "cat"):read())
    end)

    it("takes files in front", function()
      local path = scratch.file "b\na\n"
      assert.equal("a\nb\n", (bough.file(path) | cmd "sort"):read())
      local file <close> = assert(io.open(path))
      assert.equal("b\na\n", (file | cmd "cat"):read())
    end)

    it("takes an iterator in front", function()
      local left = 3
      local function numbers()
        left = left - 1
        return left >= 0 and tostring(left) or nil
      end
      assert.equal("210", (numbers | cmd "cat"):read())
    end)

    it("takes a reader in front", function()
      local process <close> = popen { "echo", "x" }
      assert.equal("x\n", (process.stdout | cmd "cat"):read())
    end)

    it("takes a file behind, which is there whole at the end", function()
      local path = scratch.dir() .. "/out"
      local result = (cmd "echo x" | cmd "cat" | bough.file(path)):wait()
      assert.is_true(result.ok)
      assert.is_nil(result.stdout)
      assert.equal("x\n", read_file(path))
      assert.is_true((cmd "echo y" | upper | bough.file(path)):wait().ok)
      assert.equal("Y\n", read_file(path))
    end)

    it("takes a Lua file behind", function()
      local path = scratch.file ""
      local file <close> = assert(io.open(path, "w"))
      assert(file:write "0\n")
      file:flush();
      (cmd "echo 1" | file):wait();
      (cmd "echo a" | upper | file):wait()
      assert.equal("0\n1\nA\n", read_file(path))
    end)

    it("takes a writer behind, and closes it at the end", function()
      for _, stage in ipairs { cmd "cat", upper } do
        local sort <close> = popen { "sort", stdin = bough.PIPE }
        assert.is_true((cmd "printf 'B\\nA\\n'" | stage | sort.stdin):wait().ok)
        assert.equal("A\nB\n", sort.stdout:read "a")
        assert.equal(0, sort:wait())
      end
    end)

    it("takes the first command's own stdin, and the last one's own stdout", function()
      local path = scratch.dir() .. "/out"
      local both = cmd { "sort", stdin = "b\na\n" } | cmd { "tr", "a-z", "A-Z", stdout = path }
      assert.is_true(both:wait().ok)
      assert.equal("A\nB\n", read_file(path))
      local lines, left = {}, { "b\n", "a\n" }
      local functions = cmd { "sort", stdin = function() return table.remove(left, 1) end }
        | cmd { "cat", stdout = function(line) lines[#lines + 1] = line end, text = "lines" }
      assert.is_true(functions:wait().ok)
      assert.same({ "a", "b" }, lines)
    end)

    local reader, writer
    before_each(function() reader, writer = core.pipe() end)
    after_each(function()
      reader:close()
      writer:close()
    end)

    local mistakes = {
      { "bough%.file%(path%)", function() return cmd "ls" | "out" end },
      { "session:cmd{", function() return cmd "ls" | { "wc" } end },
      { "session:cmd{", function() return { "ls" } | cmd "wc" end },
      { "nil cannot stand behind", function() return cmd "ls" | nil end },
      { "nil cannot stand in front", function() return nil | cmd "ls" end },
      { "5 cannot stand in front", function() return 5 | cmd "ls" end },
      { "stands in front", function() return cmd "ls" | reader end },
      { "stands behind", function() return writer | cmd "ls" end },
      { "stands behind a command", function() return "x" | bough.tee "log" end },
      { "stands behind a command", function() return bough.tee "log" | cmd "ls" end },
      { "bough%.tee copies", function() return cmd "ls" | bough.file "out" | cmd "wc" end },
      { "leave out the parentheses", function() return cmd "ls" | ("x" | cmd "wc") end },
      { "stdin of its own", function() return cmd "ls" | cmd { "wc", stdin = "x" } end },
      { "stdin of its own", function() return "x" | cmd { "wc", stdin = bough.PIPE } end },
      { "stdout of its own", function() return cmd { "ls", stdout = "out" } | cmd "wc" end },
      { "closed file", function()
        local file = io.tmpfile()
        file:close()
        return file | cmd "ls"
      end },
    }
    for i, mistake in ipairs(mistakes) do
      it(("refuses what makes no sense (%d: %s)"):format(i, mistake[1]), function()
        local before = started
        assert.match(mistake[1], raises("invalid", mistake[2]).message)
        assert.equal(before, started)
      end)
    end
  end)

  describe("a function among the stages", function()
    it("reads and writes streams, as a task of its own", function()
      local seen
      local numbered = cmd "printf 'a\\nb\\n'" | function(input, output)
        seen = core.current()
        local count = 0
        for line in input:lines() do
          count = count + 1
          output:write(count, " ", line, "\n")
        end
      end | cmd "tac"
      assert.equal("2 b\n1 a\n", numbered:read())
      assert.not_nil(seen)
    end)

    it("may be one of several, and the last", function()
      local function twice(input, output)
        for line in input:lines "L" do output:write(line, line) end
      end
      assert.equal("x\nx\nx\nx\n", (cmd "echo x" | twice | twice):read())
    end)

    it("ends its output by returning, and what is in front of it by SIGPIPE", function()
      local result = (cmd { "yes" } | function(input, output) output:write(input:read "L") end | cmd "cat"):wait()
      assert.equal("y\n", result.stdout)
      assert.equal(13, result.stages[1].signal)
      assert.equal(0, result.stages[2].exit_code)
      assert.is_true(result.ok)
    end)

    it("ends quietly when what is behind it has", function()
      local result = (cmd "yes" | upper | cmd "head -1"):wait { pipefail = true }
      assert.equal("Y\n", result.stdout)
      assert.same({ 141, 0, 0 }, {
        result.stages[1].exit_code, result.stages[2].exit_code, result.stages[3].exit_code,
      })
    end)

    it("fails the pipeline by an error, kills the rest, and the error is raised", function()
      local long = fixture.long_time()
      local broken = cmd { "sleep", long } | function() error { is_mine = true } end | cmd { "sleep", long }
      for _, way in ipairs { "wait", "read" } do
        local good, problem = pcall(broken[way], broken)
        assert.is_false(good)
        assert.is_true(problem.is_mine)
        fixture.gone(long)
      end
      local good, problem = pcall(function() for _ in broken:lines() do error "not a line" end end)
      assert.is_false(good)
      assert.is_true(problem.is_mine)
      fixture.gone(long)
    end)

    it("fails with its own traceback", function()
      local function deep() bough.open(5) end
      local broken = cmd "echo x" | function() deep() end | cmd "cat"
      assert.match("deep", raises("invalid", broken.wait, broken).traceback)
    end)

    it("is not run ahead of: a slow reader slows the writers down", function()
      local count = 0
      local run <close> = (cmd "yes" | function(input, output)
        for chunk in input:lines(65536) do
          count = count + 1
          output:write(chunk)
        end
      end | cmd "cat"):start()
      run:read(1)
      local before
      fixture.until_true("standstill", function()
        local still = before == count
        before = count
        bough.sleep(0.05)
        return still and before == count
      end)
      assert.is_true(count < 64, count .. " chunks in the air")
    end)

    it("passes on binary data unchanged", function()
      local all = {}
      for i = 0, 255 do all[i + 1] = string.char(i) end
      local data = table.concat(all):rep(4096)
      local function copy(input, output)
        for chunk in input:lines "c" do output:write(chunk) end
      end
      assert.is_true(data == (data | cmd "cat" | copy | cmd "cat" | copy):read())
    end)
  end)

  describe("an iterator in front", function()
    it("fails the pipeline by its error, or by what is no string", function()
      local long = fixture.long_time()
      local problem = raises("invalid", function()
        ((function() return {} end) | cmd { "sleep", long }):wait()
      end)
      assert.match("must return strings", problem.message)
      fixture.gone(long)
    end)

    it("is not asked for more than is wanted", function()
      local count = 0
      local result = (function()
        count = count + 1
        return ("x"):rep(65536)
      end | cmd "head -c 1"):wait()
      assert.equal("x", result.stdout)
      assert.is_true(count < 20)
    end)
  end)

  describe("between two commands", function()
    it("there is one pipe, of which this process has nothing", function()
      local run <close> = (cmd { "cat", stdin = bough.PIPE } | cmd "cat"):start()
      local function target(pid, fd) return scratch.sh(("readlink /proc/%d/fd/%d"):format(pid, fd)) end
      local pipe = target(run.stages[1].pid, 1)
      assert.match("^pipe:", pipe)
      assert.equal(pipe, target(run.stages[2].pid, 0))
      local own = io.open("/proc/self/stat"):read "n"
      assert.is_nil(scratch.sh(("ls -l /proc/%d/fd"):format(own)):find(pipe:gsub("%s", ""), 1, true))
      local problem = raises("closed", run.stages[1].stdout.read, run.stages[1].stdout)
      assert.match("handed to another command", tostring(problem))
    end)
  end)

  describe("read", function()
    it("gives all of it by default, and takes formats", function()
      local text = cmd "printf '1 2\\nx\\n'"
      assert.equal("1 2\nx\n", text:read())
      assert.equal("1 2", text:read "l")
      assert.same({ 1, 2, "\n", "x" }, { text:read("n", "n", "L", "l") })
      assert.is_nil(cmd("true"):read "l")
    end)

    it("cuts off what is not read", function()
      assert.equal("y", cmd("yes"):read "l")
      assert.equal("y", cmd("yes"):with({ check = true }):read "l")
    end)

    it("raises under check what failed", function()
      local failing = cmd("echo x; exit 3"):with { check = true }
      local problem = raises("exit", failing.read, failing)
      assert.equal(3, problem.result.exit_code)
      assert.equal("x\n", cmd("echo x; exit 3"):read())
    end)

    it("is refused where there is nothing to read or somebody should write", function()
      for _, way in ipairs { "read", "lines" } do
        for _, some in ipairs {
          cmd "ls" | bough.file "out", cmd { "ls", stdout = "out" }, cmd { "cat", stdin = bough.PIPE },
        } do
          raises("invalid", some[way], some)
        end
      end
    end)
  end)

  describe("lines", function()
    it("iterates, and starts at the first step", function()
      local before = started
      local step = (cmd "seq 3" | cmd "cat"):lines()
      assert.equal(before, started)
      local all = {}
      for line in step do all[#all + 1] = line end
      assert.same({ "1", "2", "3" }, all)
      assert.is_nil(step())
    end)

    it("takes formats", function()
      local sum = 0
      for a, b in cmd("echo 1 2 3 4"):lines("n", "n") do sum = sum + a * b end
      assert.equal(14, sum)
    end)

    it("kills what runs when the loop is left", function()
      local long = fixture.long_time()
      for line in (cmd("echo x; exec sleep " .. long) | cmd "cat"):lines() do
        assert.equal("x", line)
        break
      end
      fixture.gone(long)
    end)

    it("raises at the end, under check, what failed", function()
      local seen = 0
      raises("exit", function()
        for _ in cmd("echo x; exit 3"):with({ check = true }):lines() do seen = seen + 1 end
      end)
      assert.equal(1, seen)
    end)
  end)

  describe("wait", function()
    it("captures the output and tells of every stage", function()
      local result = (cmd "echo one; echo two >&2; exit 3" | cmd "cat; echo three >&2"):wait()
      assert.equal("one\n", result.stdout)
      assert.equal("two\nthree\n", result.stderr)
      assert.equal(0, result.exit_code)
      assert.equal(3, result.stages[1].exit_code)
      assert.is_false(result.stages[1].ok)
      assert.equal("two\n", result.stages[1].stderr)
      assert.equal("cat; echo three >&2", result.stages[2].command)
      assert.is_true(result.stages[2].elapsed_time >= 0)
      assert.is_true(result.elapsed_time >= result.stages[2].elapsed_time)
    end)

    it("keeps a mebibyte", function()
      for _, last in ipairs { cmd "cat", upper } do
        local result = (cmd "head -c 2000000 /dev/zero" | last):wait()
        assert.equal(1 << 20, #result.stdout)
        assert.equal(2000000 - (1 << 20), result.truncated.stdout)
        assert.is_true(result.ok)
      end
    end)

    it("leaves stderr where a command wants it", function()
      local lines = {}
      local both = cmd { shell = "echo a; echo b >&2", stderr = bough.STDOUT } | cmd "sort"
      assert.equal("a\nb\n", both:read())
      local heard = cmd {
        shell = "echo a >&2; echo b >&2", stderr = function(line) lines[#lines + 1] = line end, text = "lines",
      }
      assert.is_nil(heard:wait().stderr)
      assert.same({ "a", "b" }, lines)
    end)
  end)

  describe("status", function()
    it("is that of the last stage", function()
      assert.is_true((cmd "exit 3" | cmd "cat"):wait().ok)
      assert.equal(4, (cmd "exit 3" | cmd "exit 4"):wait().exit_code)
    end)

    it("is with pipefail that of the last stage that failed", function()
      local result = (cmd "exit 3" | cmd "exit 4" | cmd "cat"):wait { pipefail = true }
      assert.equal(4, result.exit_code)
      assert.equal(2, result.stage)
      assert.is_true(result.pipefail)
      assert.is_false(result.ok)
      local kept = (cmd "exit 3" | cmd "cat"):with { pipefail = true }
      assert.equal(3, kept:wait().exit_code)
      assert.equal(0, kept:wait({ pipefail = false }).exit_code)
    end)

    it("is with check an error that names the stage", function()
      local bad = (cmd "exit 3" | cmd "echo why >&2; exit 4" | cmd "cat"):with { check = true }
      assert.is_true(bad:wait().ok)
      local problem = raises("exit", bad.wait, bad, { pipefail = true })
      assert.match("stage 2 %(echo why", problem.message)
      assert.match("exit code 4", problem.message)
      assert.match('last line of stderr: "why"', problem.message)
      assert.equal(4, problem.result.exit_code)
      assert.equal(3, problem.result.stages[1].exit_code)
      assert.match('^cmd "exit 3": exit code 3', tostring(raises("exit", function()
        cmd("exit 3"):wait { check = true }
      end)))
    end)

    it("is an error of a stage with a check of its own, wherever it stands", function()
      local own = cmd { shell = "exit 3", check = true } | cmd "cat"
      assert.match("stage 1", raises("exit", own.wait, own).message)
      local none = cmd { shell = "exit 3", check = false }
      assert.equal(3, none:wait().exit_code)
    end)

    it("of yes | head is well, as in a shell", function()
      local result = (cmd "yes" | cmd "head -1"):wait { check = true }
      assert.equal("y\n", result.stdout)
      assert.equal(141, result.stages[1].exit_code)
    end)
  end)

  describe("timeout", function()
    it("ends all stages, and is a result", function()
      local long = fixture.long_time()
      local slow = (cmd("echo x; exec sleep " .. long) | cmd "cat" | upper):with { timeout = 0.2 }
      local result = slow:wait()
      fixture.gone(long)
      assert.is_true(result.timed_out)
      assert.is_false(result.ok)
      assert.equal(137, result.exit_code)
      assert.equal("X\n", result.stdout)
      local problem = raises("timeout", slow.wait, slow, { check = true })
      assert.match("time limit of 0.2 s", problem.message)
      assert.is_true(problem.result.timed_out)
    end)

    it("ends functions as well", function()
      local function sleepy() bough.sleep(60) end
      local result = (sleepy | cmd "cat" | sleepy | cmd "cat"):wait { timeout = 0.1 }
      assert.is_true(result.timed_out)
      assert.equal(137, result.exit_code)
    end)

    it("of one command ends that one", function()
      local result = (cmd { "sleep", "60", timeout = 0.1 } | cmd "echo y"):wait { timeout = 60 }
      assert.is_true(result.stages[1].timed_out)
      assert.is_false(result.timed_out)
      assert.is_true(result.ok)
      assert.equal("y\n", result.stdout)
    end)

    it("that does not come changes nothing", function()
      assert.is_true((cmd "echo x" | upper):wait({ timeout = 60 }).ok)
    end)
  end)

  describe("settings", function()
    it("are checked", function()
      local some = cmd "ls" | cmd "wc"
      assert.match('did you mean "pipefail"', raises("invalid", some.with, some, { pipe_fail = true }).message)
      raises("invalid", some.wait, some, { timeout = 0 })
      raises("invalid", some.start, some, { check = 1 })
      raises("invalid", some.with)
    end)

    it("stay when more is joined", function()
      assert.equal(3, (cmd("exit 3"):with { pipefail = true } | cmd "cat"):wait().exit_code)
      assert.equal(3, (cmd "exit 3" | cmd("cat"):with { pipefail = true }):wait().exit_code)
    end)
  end)

  describe("to", function()
    it("hands the output to a function, in chunks or lines", function()
      local got = {}
      local result = (cmd "seq 3"):to(function(line) got[#got + 1] = line end, { text = "lines" })
      assert.is_true(result.ok)
      assert.same({ "1", "2", "3" }, got)
      got = {};
      (cmd "printf 'a\\nb'" | upper):to(function(chunk) got[#got + 1] = chunk end)
      assert.equal("A\nB", table.concat(got))
      got = {}
      cmd("printf 'a\\n\\nb'"):to(function(line) got[#got + 1] = line end, { text = "lines" })
      assert.same({ "a", "", "b" }, got)
    end)

    it("writes a file", function()
      local path = scratch.dir() .. "/out"
      assert.equal(3, cmd("echo x; exit 3"):to(path).exit_code)
      assert.equal("x\n", read_file(path))
      assert.is_true((cmd "echo y" | upper):to(bough.file(path)).ok)
      assert.equal("Y\n", read_file(path))
    end)

    it("raises the error of the function and kills what runs", function()
      local long = fixture.long_time()
      local good, problem = pcall(function()
        cmd("echo x; exec sleep " .. long):to(function() error "enough" end)
      end)
      assert.is_false(good)
      assert.match("enough", problem)
      fixture.gone(long)
    end)

    it("is named by what is wrong with its file", function()
      local dir = scratch.dir()
      for _, pipeline in ipairs { cmd "echo x", bough.host "echo x", cmd "echo x" | upper } do
        for _, path in ipairs { dir, dir .. "/none/x" } do
          local good, problem = pcall(pipeline.to, pipeline, path)
          assert.is_false(good)
          assert.equal("to", problem.op)
          assert.match(path, problem.message, 1, true)
        end
      end
    end)

    it("raises before anything is done to what is no sink", function()
      local some = cmd "ls"
      raises("invalid", some.to, some)
      raises("invalid", some.to, some, { "x" })
      raises("invalid", some.to, some, "path", { text = "lines" })
      raises("not_found", some.to, some | upper, "/nonesuch/x")
    end)
  end)

  describe("tee", function()
    it("copies what passes to files and functions", function()
      local path, got = scratch.dir() .. "/log", {}
      local seen = cmd "seq 3" | bough.tee(path, function(line) got[#got + 1] = line end, { text = "lines" })
        | cmd "wc -l"
      assert.equal(3, seen:read "n")
      assert.equal("1\n2\n3\n", read_file(path))
      assert.same({ "1", "2", "3" }, got)
      assert.equal("1\n2\n3\n", cmd("seq 3"):tee(path):read())
      assert.match("tee " .. path:gsub("%p", "%%%0"), tostring(seen))
    end)

    it("copies to Lua files and writers", function()
      local path = scratch.file ""
      local file <close> = assert(io.open(path, "w"))
      local sort <close> = popen { "sort", stdin = bough.PIPE }
      assert.is_true(cmd("printf 'b\\na\\n'"):tee(file, sort.stdin):wait().ok)
      assert.equal("b\na\n", read_file(path))
      assert.equal("a\nb\n", sort.stdout:read "a")
    end)

    it("goes on for its sinks when what is behind it has ended", function()
      local path = scratch.dir() .. "/log"
      local result = (cmd "seq 100000" | bough.tee(path) | cmd "head -1"):wait()
      assert.equal("1\n", result.stdout)
      assert.equal(0, result.stages[1].exit_code)
      assert.equal(588895, #read_file(path))
    end)

    it("goes on when a writer among its sinks has ended", function()
      local head <close> = popen { "head", "-c", "1", stdin = bough.PIPE }
      assert.equal(588895, #cmd("seq 100000"):tee(head.stdin):read())
    end)

    it("leaves no file when the pipeline fails", function()
      local dir = scratch.dir()
      local broken = cmd "seq 10" | bough.tee(dir .. "/log") | function(input)
        input:read "a"
        error "no"
      end
      -- the file may be whole before the function fails: then there is no saying that it should not be
      pcall(broken.wait, broken)
      local stuck = cmd "seq 10; sleep 60" | bough.tee(dir .. "/stuck") | function(input)
        input:read "l"
        error "no"
      end | bough.file(dir .. "/sunk")
      assert.is_false(pcall(stuck.wait, stuck))
      assert.not_match("s[tu]", scratch.sh("ls " .. dir))
    end)

    it("raises what a sink raises", function()
      local broken = cmd("echo x; sleep 60"):tee(function() error "full" end)
      local good, problem = pcall(broken.wait, broken)
      assert.is_false(good)
      assert.match("full", problem)
      raises("not_found", function() cmd("echo x"):tee("/nonesuch/x"):wait() end)
    end)

    it("is checked when it is made", function()
      raises("invalid", bough.tee)
      raises("invalid", bough.tee, 5)
      raises("invalid", bough.tee, "x", { txt = "lines" })
      raises("invalid", function() bough.tee("x").y = 1 end)
    end)
  end)

  describe("start", function()
    it("gives what runs, to write to and to read from", function()
      local run <close> = (cmd { "cat", stdin = bough.PIPE } | cmd "cat"):start()
      run.stdin:write "one\ntwo\n"
      assert.equal("one", run:read())
      assert.equal("two", run:read "l")
      assert.is_nil(run:poll())
      assert.equal(2, #run.stages)
      assert.match("live", tostring(run))
      run.stdin:close()
      assert.is_nil(run:read "l")
      assert.is_true(run:wait().ok)
      assert.equal(0, run:poll())
      assert.is_true(run:wait().ok)
      assert.match("over", tostring(run))
      raises("invalid", function() run.stdout = nil end)
    end)

    it("raises what keeps a stage from starting, and leaves nothing running", function()
      local long = fixture.long_time()
      for i = 1, 3 do
        local stages = { cmd { "sleep", long }, cmd { "sleep", long }, cmd { "sleep", long } }
        stages[i] = cmd "/nonesuch"
        stages[i] = cmd { "/nonesuch" }
        local all = stages[1] | stages[2] | upper | stages[3]
        for _, way in ipairs { "start", "wait", "read" } do
          assert.match("/nonesuch", raises("not_found", all[way], all).message)
          fixture.gone(long)
        end
      end
      raises("invalid", function()
        (cmd { "sleep", long } | command.new(function() bough.open(5) end, "x", nil, "host")):start()
      end)
      fixture.gone(long)
    end)

    it("names the stage that does not start", function()
      local none = cmd "cat" | cmd { "/nonesuch", "-x" }
      local _, problem = pcall(none.wait, none)
      assert.match("^cmd \"/nonesuch %-x\": program \"/nonesuch\": not found", tostring(problem))
      local plain = bough.host { "/nonesuch" } | cmd "cat"
      assert.match('^host "/nonesuch": program', tostring(raises("not_found", plain.start, plain)))
      local nowhere = cmd { "cat", stdin = bough.file "/nonesuch" } | cmd "cat"
      assert.match('^cmd "cat": ', tostring(raises("not_found", nowhere.read, nowhere)))
      local failing = bough.host { "false", check = true }
      assert.match('^host "false": exit code 1', tostring(raises("exit", failing.wait, failing)))
    end)

    it("lets wait be cut short, which changes nothing", function()
      local run <close> = (cmd { "cat", stdin = bough.PIPE } | upper):start()
      assert.match("still running after", raises("timeout", run.wait, run, 0.02).message)
      raises("timeout", bough.deadline, 0.02, run.wait, run)
      run.stdin:write("x"):close()
      assert.equal("X", run:read "a")
      assert.is_true(run:wait(20).ok)
    end)

    it("leaves output that nobody has read to be read after the end", function()
      for _, last in ipairs { cmd "cat", upper } do
        local run <close> = (cmd "head -c 300000 /dev/zero" | last):start()
        assert.is_true(run:wait().ok)
        assert.equal(300000, #run:read "a")
      end
    end)

    it("is not held up by a stderr that nobody reads", function()
      local run <close> = (cmd { shell = "seq 100000 >&2", stderr = bough.PIPE } | cmd "cat"):start()
      assert.is_true(run:wait().ok)
      assert.equal(588895, #run.stages[1].stderr:read "a")
    end)

    it("gives lines", function()
      local run <close> = (cmd "seq 3"):start()
      local sum = 0
      for n in run:lines "n" do sum = sum + n end
      assert.equal(6, sum)
    end)

    it("has signals for all stages", function()
      local run <close> = (cmd "sleep 60" | upper | cmd "sleep 60"):start()
      run:kill "TERM"
      local result = run:wait()
      assert.same({ 143, 143, 143 }, {
        result.stages[1].exit_code, result.stages[2].exit_code, result.stages[3].exit_code,
      })
      run:kill()
      local stopped <close> = (cmd "cat" | upper):start()
      stopped:kill "CONT"
      assert.is_true(stopped:wait().ok)
    end)

    it("closes with io.popen's three values", function()
      local function closed(pipeline)
        local run <close> = pipeline:start()
        return { run:close() }
      end
      assert.same({ true, "exit", 0 }, closed(cmd "true" | cmd "cat"))
      assert.same({ nil, "exit", 3 }, closed(cmd "exit 3"))
      assert.same({ nil, "signal", 13 }, closed(cmd "exec yes"))
      assert.same({ nil, "exit", 3 }, closed((cmd "exit 3" | upper):with { pipefail = true }))
    end)

    it("ends with its variable", function()
      local long = fixture.long_time()
      local kept
      do
        local run <close> = (cmd { "sleep", long } | upper | cmd { "sleep", long }):start()
        kept = run
      end
      assert.equal(0, #fixture.processes(long))
      assert.match("closed", tostring(kept))
      raises("closed", kept.wait, kept)
      assert.equal(137, kept:poll())
      assert.same({ nil, "signal", 9 }, { kept:close() })
    end)

    it("ends with the collector", function()
      local long = fixture.long_time();
      (cmd { "sleep", long } | upper | cmd { "sleep", long } | bough.tee(scratch.dir() .. "/log")):start()
      fixture.until_true("the end of what nobody holds", function()
        collectgarbage()
        return #fixture.processes(long) == 0
      end)
    end)
  end)

  describe("cancelling", function()
    local ways = {
      wait = function(pipeline) pipeline:wait() end,
      read = function(pipeline) pipeline:read() end,
      lines = function(pipeline) for _ in pipeline:lines() do bough.sleep(60) end end,
      to = function(pipeline) pipeline:to(function() bough.sleep(60) end) end,
      start = function(pipeline)
        local run <close> = pipeline:start()
        run:wait()
      end,
    }
    for name, way in pairs(ways) do
      it("in " .. name .. " kills all stages", function()
        local dir, long = scratch.dir(), fixture.long_time()
        local pipeline = cmd("echo x; exec sleep " .. long) | bough.tee(dir .. "/log") | upper
          | cmd("cat; exec sleep " .. long)
        local task = bough.spawn(way, pipeline)
        fixture.until_true("the start", function() return #fixture.processes(long) == 2 end)
        task:cancel()
        raises("cancelled", task.wait, task)
        assert.equal(0, #fixture.processes(long))
        assert.equal("", scratch.sh("ls " .. dir))
      end)
    end

    it("at any moment leaves nothing", function()
      local long = fixture.long_time()
      local function feed() return ("x\n"):rep(1000) end
      for i = 1, 60 do
        local task = bough.spawn(function()
          (feed | cmd "cat" | upper | cmd("cat; sleep " .. long) | cmd "cat"):read()
        end)
        for _ = 1, i do bough.step(0) end
        task:cancel()
        raises("cancelled", task.wait, task)
      end
      fixture.gone(long)
    end)

    it("by a deadline is the same", function()
      local long = fixture.long_time()
      raises("timeout", bough.deadline, 0.1, function() (cmd { "sleep", long } | upper):wait() end)
      fixture.gone(long)
    end)
  end)

  describe("many at once", function()
    it("do not mix", function()
      local functions = {}
      for i = 1, 40 do
        functions[i] = function()
          return (("%d\n"):format(i):rep(1000) | cmd "cat" | upper | cmd "uniq" | cmd "cat"):read "n"
        end
      end
      local results = bough.all(functions)
      for i = 1, 40 do assert.equal(i, results[i]) end
    end)
  end)

  describe("in a coroutine inside a task", function()
    it("runs without functions, and says why not with them", function()
      bough.run(function()
        local generator = coroutine.wrap(function()
          coroutine.yield((cmd "echo x" | cmd "cat"):read())
          coroutine.yield(pcall(function() return (cmd "echo x" | upper):read() end))
          for line in (cmd "yes" | cmd "cat"):lines() do coroutine.yield(line) break end
        end)
        assert.equal("x\n", generator())
        local good, problem = generator()
        assert.is_false(good)
        assert.equal("state", problem.kind)
        assert.match("Lua functions", problem.message)
        assert.equal("y", generator())
        assert.is_nil(generator())
      end)
    end)
  end)

  describe("bough.safe", function()
    it("joins what it has wrapped", function()
      local seen
      local pipeline = safe.host "echo x" | function(input, output)
        seen = { input:read "L", input:read "L", output:write "y\n" }
        assert.same({ nil, "invalid" }, { nil, select(2, input:read "bad").kind })
      end | safe.host "cat"
      assert.equal("y\n", pipeline:read())
      assert.equal("x\n", seen[1])
      assert.equal("1", ("1" | safe.host "cat"):read())
      local path = scratch.dir() .. "/log"
      assert.equal("z", (safe.host "printf z" | safe.tee(path)):read())
      assert.equal("z", read_file(path))
    end)

    it("returns nil and the error, but for the operator", function()
      local function refused(kind, value, problem)
        assert.is_nil(value)
        assert.equal(kind, problem.kind)
      end
      raises("invalid", function() return safe.host "ls" | "out" end) -- an operator has one result
      refused("invalid", safe.host { "ls", timout = 1 })
      refused("exit", (safe.host "exit 3" | safe.host "exit 4"):wait { check = true })
      refused("not_found", (safe.host "echo" | safe.host { "/nonesuch" }):start())
      local run = assert(safe.host("cat"):start())
      assert.equal(0, run:wait().exit_code)
      refused("invalid", run:wait(-1))
      for line in (safe.host "echo x"):lines() do assert.equal("x", line) end
    end)
  end)
end)

describe("bough.pipeline of sandboxes", function()
  local box, base, session

  setup(function()
    box = bough.open(scratch.store())
    base = box.images:use "busybox"
  end)

  teardown(function()
    if box then box:close() end
  end)

  before_each(function() session = base:session() end)
  after_each(function() session:close() end)

  it("joins commands of one session, which share its sandbox, and moves it when the last has ended", function()
    local both = session:cmd "echo one > /a; echo x; sleep 0.1; echo two > /c" | session:cmd "cat > /b"
    assert.is_true(both:wait().ok)
    assert.not_equal(base.uuid, session.uuid)
    assert.equal("one\n", session:read "/a")
    assert.equal("x\n", session:read "/b")
    assert.equal("two\n", session:read "/c")
    assert.equal(base, session:image():parent())
  end)

  it("counts lines as the manual says", function()
    session:run "printf 'root:/bin/sh\\nbin:/bin/false\\n' > /list"
    assert.equal(1, (session:cmd "cat /list" | session:cmd { "grep", "-c", "sh" }):read "n")
  end)

  it("joins sessions, images, instances and this machine", function()
    local other <close> = base:session()
    local instance <close> = base:boot()
    other:run "echo other > /name"
    local all = bough.host "echo host" | session:cmd "cat; hostname" | other:cmd "cat; cat /name"
      | base:cmd "tr a-z A-Z" | instance:cmd "cat; echo instance" | bough.host { "tail", "-n", "+1" }
    assert.equal("HOST\nBOUGH\nOTHER\ninstance\n", all:read())
    session:run "true"
  end)

  it("passes a lot through unchanged, and holds up nobody", function()
    local result = (base:cmd "head -c 50000000 /dev/zero" | base:cmd "cat" | bough.host "wc -c"):wait()
    assert.equal("50000000", result.stdout:match "%d+")
  end)

  it("has functions among its stages", function()
    local got = (session:cmd "seq 3" | function(input, output)
      for n in input:lines "n" do output:write(n * n, "\n") end
    end | session:cmd "tail -n 1"):read "n"
    assert.equal(9, got)
  end)

  it("runs under the session's defaults", function()
    local strict <close> = base:session { cwd = "/tmp", env = { NAME = "x" }, check = true }
    assert.equal("/tmp x\n", (strict:cmd "echo $PWD $NAME" | strict:cmd "cat"):read())
    local failing = strict:cmd "exit 3" | strict:cmd "exit 4"
    assert.match("stage 2", raises("exit", failing.wait, failing).message)
    assert.equal(4, failing:wait({ check = false }).exit_code)
    assert.is_true((strict:cmd "yes" | strict:cmd "head -n 1"):wait().ok)
  end)

  it("leaves the session where it was, and usable, when it is given up", function()
    local long = fixture.long_time()
    local stuck = session:cmd("echo x > /x; echo y; exec sleep " .. long) | session:cmd("cat; sleep " .. long)
    local ways = {
      function()
        local run <close> = stuck:start()
        run:read "l"
      end,
      function()
        for _ in stuck:lines() do break end
      end,
      function()
        local task = bough.spawn(function() stuck:wait() end)
        fixture.until_true("the start", function() return #fixture.processes(long) >= 2 end)
        task:cancel()
        raises("cancelled", task.wait, task)
      end,
      function()
        assert.is_false(pcall(function() (stuck | function() error "no" end):wait() end))
      end,
      function() assert.is_true(stuck:wait({ timeout = 0.3 }).timed_out) end,
    }
    for i = 1, #ways do
      ways[i]()
      fixture.gone(long)
      assert.equal(base.uuid, session.uuid, "way " .. i)
      assert.equal(0, session:run({ "true", disposable = true }).exit_code)
    end
  end)

  it("raises what keeps a stage from starting, and the session is usable", function()
    local long = fixture.long_time()
    local bad = session:cmd { "sleep", long } | session:cmd { "/nonesuch" }
    assert.match("/nonesuch", raises("not_found", bad.start, bad).message)
    fixture.gone(long)
    session:run "true"
    local nowhere = session:cmd { "sleep", long } | session:cmd { "true", cwd = "/nonesuch" }
    raises("not_found", nowhere.read, nowhere)
    fixture.gone(long)
    session:run "true"
    session:close()
    local closed = bough.host { "sleep", long } | session:cmd "cat"
    raises("closed", closed.wait, closed)
    fixture.gone(long)
  end)

  it("is started anew, from where the session stands then", function()
    local count = session:cmd "ls / | wc -l"
    local before = count:read "n"
    session:run "mkdir /more"
    assert.equal(before + 1, count:read "n")
  end)

  it("cancelled at any moment leaves nothing running", function()
    local long = fixture.long_time()
    for i = 1, 30 do
      local task = bough.spawn(function()
        (session:cmd "seq 10" | upper | session:cmd("cat; sleep " .. long)):read()
      end)
      for _ = 1, 3 * i do bough.step(0.002) end
      task:cancel()
      raises("cancelled", task.wait, task)
      fixture.gone(long) -- what a shell that was killed had started may take a moment more
    end
    session:run "true"
  end)
end)
