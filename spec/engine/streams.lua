--- Streams: what becomes of output, where input comes from.

local bough = require "bough"
local fixture = require "spec.engine.fixture"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

local MIB = 1 << 20

return function(open, lacks)
  describe("output", function()
    local box, base

    setup(function()
      box = open()
      base = box.images:use "busybox"
    end)

    teardown(function() box:close() end)

    it("is captured as it is, NUL and bytes that are no text included", function()
      local image = base:run [[printf 'a\000b\377\n\r'; printf '\200' >&2]]
      assert.equal("a\0b\xff\n\r", image.stdout)
      assert.equal("\x80", image.stderr)
      assert.same({}, image.result.truncated)
      assert.equal("", base:run("true").stdout)
    end)

    it("is complete however it is cut into writes", function()
      local image = base:run "i=0; while [ $i -lt 3000 ]; do echo $i; echo $i >&2; i=$((i+1)); done"
      local expected = {}
      for i = 0, 2999 do expected[#expected + 1] = i .. "\n" end
      assert.equal(table.concat(expected), image.stdout)
      assert.equal(table.concat(expected), image.stderr)
    end)

    it("is kept up to 1 MiB of each stream, and what was dropped is told", function()
      local image = base:run { "dd", "if=/dev/zero", "bs=1M", "count=2" }
      assert.equal(MIB, #image.stdout)
      assert.same({ stdout = MIB }, image.result.truncated)
    end)

    it("is cut exactly where truncate_output_at says, each stream for itself", function()
      local function cut(at)
        local result = base:run({ shell = "printf hello; printf four >&2", truncate_output_at = at }).result
        return { result.stdout, result.stderr, result.truncated.stdout, result.truncated.stderr }
      end
      assert.same({ "", "", 5, 4 }, cut(0))
      assert.same({ "h", "f", 4, 3 }, cut(1))
      assert.same({ "hell", "four", 1 }, cut(4))
      assert.same({ "hello", "four" }, cut(5))
      assert.same({ "hello", "four" }, cut(6))
      assert.same({ "hello", "four" }, cut "1K")
      raises("invalid", cut, -1)
    end)

    it("is dropped with false, and nil in the result", function()
      local image = base:run { shell = "echo out; echo err >&2", stdout = false }
      assert.is_nil(image.stdout)
      assert.equal("err\n", image.stderr)
      local before = collectgarbage "count"
      image = base:run { "dd", "if=/dev/zero", "bs=1M", "count=64", stdout = false, stderr = false }
      assert.is_nil(image.stdout)
      assert.is_true(collectgarbage "count" - before < 1024)
    end)

    it("joins with stderr = STDOUT, in the order of the writes", function()
      local image = base:run {
        shell = "i=0; while [ $i -lt 200 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done",
        stderr = bough.STDOUT,
      }
      local expected = {}
      for i = 0, 199 do expected[#expected + 1] = ("o%d\ne%d\n"):format(i, i) end
      assert.equal(table.concat(expected), image.stdout)
      assert.is_nil(image.stderr)
      raises("invalid", base.run, base, { "true", stdout = bough.STDOUT })
    end)

    it("goes into a file, whole", function()
      local path = scratch.dir() .. "/out"
      local image = base:run { shell = "echo one; echo two", stdout = path }
      assert.equal("one\ntwo\n", fixture.read_file(path))
      assert.is_nil(image.stdout)
      base:run { "dd", "if=/dev/zero", "bs=1M", "count=3", stdout = path }
      assert.equal(3 * MIB, #fixture.read_file(path))
    end)

    it("leaves a file as it was when there is nothing to write", function()
      local path = scratch.file "before"
      raises("not_found", base.run, base, { "no-such-program", stdout = path })
      assert.equal("before", fixture.read_file(path))
      local mark = fixture.long_time()
      local image = base:start { shell = "echo after; sleep " .. mark, stdout = path }
      image:close()
      fixture.gone("sleep " .. mark)
      fixture.until_true("the temporary file's end", function()
        return scratch.sh("ls -A " .. scratch.quote(path:match "^(.*)/")) == "file\n"
      end)
      assert.equal("before", fixture.read_file(path))
      raises("not_found", base.run, base, { "true", stdout = scratch.dir() .. "/no/where" })
    end)

    it("goes into a Lua file, which stays open", function()
      local path = scratch.dir() .. "/out"
      local file <close> = assert(io.open(path, "w"))
      file:write "before\n"
      base:run { shell = "echo one", stdout = file }
      file:write "between\n"
      base:run { shell = "echo two >&2", stderr = file }
      file:write "after\n"
      file:flush()
      assert.equal("before\none\nbetween\ntwo\nafter\n", fixture.read_file(path))
      file:close()
      raises("invalid", base.run, base, { "true", stdout = file })
    end)

    it("goes to a function, chunk by chunk, each byte once", function()
      local out, err = {}, {}
      local image = base:run {
        shell = "echo one; echo two >&2; echo three",
        stdout = function(chunk) out[#out + 1] = chunk end,
        stderr = function(chunk) err[#err + 1] = chunk end,
      }
      assert.equal("one\nthree\n", table.concat(out))
      assert.equal("two\n", table.concat(err))
      assert.is_nil(image.stdout)
    end)

    it("goes to a function line by line when asked to, the last one as it is", function()
      local lines = {}
      base:run {
        shell = [[printf 'one\n\ntw'; sleep 0.05; printf 'o\nthree']], text = "lines",
        stdout = function(line) lines[#lines + 1] = line end,
      }
      assert.same({ "one", "", "two", "three" }, lines)
    end)

    if not lacks.unbounded then
      it("of 64 MiB goes to a function in flat memory", function()
        local count, digest = 0, 0
        base:run { "true", stdout = function() end }
        collectgarbage()
        local before, peak = fixture.resident(), 0
        base:run {
          "dd", "if=/dev/zero", "bs=1M", "count=64",
          stdout = function(chunk)
            count = count + #chunk
            digest = digest | chunk:byte(1) | chunk:byte(-1)
            if count % MIB < #chunk then peak = math.max(peak, fixture.resident()) end
          end,
        }
        assert.equal(64 * MIB, count)
        assert.equal(0, digest)
        assert.is_true(peak - before < 8 * MIB, ("grew by %d KiB"):format((peak - before) // 1024))
      end)
    end

    it("to a slow function holds nobody else up", function()
      local count, ticks = 0, 0
      bough.run(function()
        local _ <close> = bough.spawn(function()
          while true do
            bough.sleep(0.001)
            ticks = ticks + 1
          end
        end)
        local before
        base:run {
          "dd", "if=/dev/zero", "bs=1M", "count=10",
          stdout = function(chunk)
            count = count + #chunk
            if not before then
              -- the command is stuck in its write now, and the ticker goes on
              before = ticks
              fixture.until_true("ticks", function() return ticks >= before + 20 end)
            end
          end,
        }
      end)
      assert.equal(10 * MIB, count)
      assert.is_true(ticks >= 20)
    end)

    it("to a function that raises kills the command, and the error comes out", function()
      local mark = fixture.long_time()
      local ok, problem = pcall(base.run, base, {
        shell = "echo x; sleep " .. mark, stdout = function() error("enough", 0) end,
      })
      assert.is_false(ok)
      assert.equal("enough", problem)
      fixture.gone("sleep " .. mark)
      assert.equal(0, base:run("true").exit_code)
    end)

    it("to a function that runs commands itself works", function()
      local inner = {}
      base:run {
        shell = "echo a; echo b", text = "lines",
        stdout = function(line) inner[#inner + 1] = base:run({ "echo", line .. line }).stdout end,
      }
      assert.same({ "aa\n", "bb\n" }, inner)
    end)

    it("has no pipes without popen", function()
      raises("invalid", base.run, base, { "true", stdout = bough.PIPE })
      raises("invalid", base.run, base, { "true", stdin = bough.PIPE })
    end)

    describe("and input", function()
      it("is empty unless given", function()
        assert.equal("", base:run({ "cat" }).stdout)
        assert.equal("", base:run({ "cat", stdin = "" }).stdout)
      end)

      it("comes from a string, NUL included, however long", function()
        assert.equal("a\0b\n", base:run({ "cat", stdin = "a\0b\n" }).stdout)
        assert.equal("5000000\n", base:run({ "wc", "-c", stdin = ("x"):rep(5000000) }).stdout)
      end)

      it("comes from bytes, a path, a Lua file", function()
        local path = scratch.file "from a file\n"
        assert.equal("data", base:run({ "cat", stdin = bough.bytes "data" }).stdout)
        assert.equal("from a file\n", base:run({ "cat", stdin = bough.file(path) }).stdout)
        local file <close> = assert(io.open(path))
        assert.equal("from a file\n", base:run({ "cat", stdin = file }).stdout)
        assert.equal("file", io.type(file))
        raises("not_found", base.run, base, { "cat", stdin = bough.file(path .. ".not") })
      end)

      it("comes from a function until it returns nothing", function()
        local i = 0
        local image = base:run { "cat", stdin = function()
          i = i + 1
          return i <= 3 and ("line %d\n"):format(i) or nil
        end }
        assert.equal("line 1\nline 2\nline 3\n", image.stdout)
        local chunks = 0
        image = base:run { "wc", "-c", stdin = function()
          chunks = chunks + 1
          return chunks <= 100 and ("x"):rep(100000) or nil
        end }
        assert.equal("10000000\n", image.stdout)
        raises("invalid", base.run, base, { "cat", stdin = function() return {} end })
      end)

      it("is read again by each run from a string and a path", function()
        local path = scratch.file "again"
        for _ = 1, 2 do
          assert.equal("text", base:run({ "cat", stdin = "text" }).stdout)
          assert.equal("again", base:run({ "cat", stdin = bough.file(path) }).stdout)
        end
      end)

      it("may be left unread", function()
        local image = base:run { "true", stdin = ("x"):rep(1000000) }
        assert.equal(0, image.exit_code)
        local calls = 0
        image = base:run { "head", "-c", "1", stdin = function()
          calls = calls + 1
          return ("y"):rep(100000)
        end }
        assert.equal("y", image.stdout)
        assert.is_true(calls < 100)
      end)
    end)
  end)
end
