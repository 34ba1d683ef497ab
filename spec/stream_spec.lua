--- Readers and writers, over a kernel pipe whose both ends are ours (core.pipe).

local core = require "bough.core"
local lfs = require "lfs"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

local run, spawn, deadline = core.run, core.spawn, core.deadline
local MiB = 1 << 20

local own_pid
do
  local file <close> = assert(io.open "/proc/self/stat")
  own_pid = file:read "n"
end

local function content(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

local function resident()
  return tonumber(content("/proc/self/status"):match "VmRSS:%s*(%d+)") << 10
end

-- The descriptors that are pipes: number -> true for those that write.
local function pipes()
  local numbers, found = {}, {}
  for name in lfs.dir "/proc/self/fd" do numbers[#numbers + 1] = name end
  for _, name in ipairs(numbers) do
    local target = lfs.symlinkattributes("/proc/self/fd/" .. name, "target")
    if target and target:find "^pipe:" then
      local flags = content("/proc/self/fdinfo/" .. name):match "flags:%s*(%d+)"
      found[tonumber(name)] = tonumber(flags, 8) & 3 == 1
    end
  end
  return found
end

-- A reader of what a shell command prints, a file of io.popen that waits for the command.
local function reader_of(command)
  local before = pipes()
  local reader, writer = core.pipe "stdout"
  local number
  for fd, writes in pairs(pipes()) do
    if before[fd] == nil and writes then number = fd end
  end
  -- The shell says that it has opened its end before ours is closed.
  local shell = assert(io.popen(("exec 3>/proc/%d/fd/%d; echo; (%s) >&3"):format(own_pid, number, command)))
  shell:read "l"
  writer:close()
  return reader, shell
end

-- Runs a script in a Lua of its own; returns what it wrote to either stream, whether it went well, and how.
local function script(text, redirect)
  local path = scratch.dir "script" .. "/script.lua"
  local file = assert(io.open(path, "w"))
  file:write(([[package.path, package.cpath = %q, %q
    local core = require "bough.core"
    ]]):format(package.path, package.cpath), text)
  file:close()
  local pipe = assert(io.popen(("%s %s 2>&1 %s"):format(arg and arg[-1] or "lua5.4", path, redirect or "")))
  local output = pipe:read "a"
  return output, pipe:close()
end

-- Lets everybody who is ready have `n` turns.
local function turns(n)
  for _ = 1, n or 3 do core.step(0) end
end

local contexts = {
  ["the main thread"] = function(body) return body() end,
  ["a task"] = function(body) return run(body) end,
  ["a foreign coroutine"] = function(body) return coroutine.wrap(body)() end,
}

-- Writes `text` in pieces of random sizes from a task of its own, and ends.
local function trickle(writer, text, largest)
  return spawn(function()
    local at = 1
    while at <= #text do
      local size = math.random(largest)
      writer:write(text:sub(at, at + size - 1))
      at = at + size
      if math.random(3) == 1 then core.sleep(0) end
    end
    writer:close()
  end)
end

local function pipe_with(text)
  local reader, writer = core.pipe()
  writer:write(text):close()
  return reader
end

local function file_with(text)
  local file = assert(io.tmpfile())
  file:write(text)
  file:seek("set", 0)
  return file
end

describe("core.pipe", function()
  -- nothing may be left in the loop by a test
  after_each(function()
    collectgarbage()
    collectgarbage()
    turns()
    assert.is_false(core.step(0), "tasks are left")
    assert.is_nil(core.timeout(), "something is left in the loop")
  end)

  it("gives two ends that say what they are", function()
    local reader, writer = core.pipe "stdout"
    assert.equal("reader stdout (open)", tostring(reader))
    assert.equal("writer stdout (open)", tostring(writer))
    assert.equal("bough.reader", getmetatable(reader).__name)
    assert.equal("bough.writer", getmetatable(writer).__name)
    assert.same({ false, false, 0 }, { reader.closed, writer.closed, writer.written })
    assert.is_nil(reader.fd)
    writer:write "x"
    assert.equal(1, writer.written)
    writer:close()
    assert.equal("writer stdout (closed)", tostring(writer))
    assert.is_true(writer.closed)
    assert.equal("reader stdout (open)", tostring(reader))
    assert.equal("x", reader:read "a")
    assert.equal("reader stdout (at end)", tostring(reader))
    reader:close()
    assert.equal("reader stdout (closed)", tostring(reader))
    assert.is_true(reader.closed)
    assert.matches("expected a name", raises("invalid", core.pipe, {}).message)
  end)

  it("closes both with the scope", function()
    local before = pipes()
    do
      local reader <close>, writer = core.pipe()
      local _ <close> = writer
      writer:write "lost"
      assert.is_false(reader.closed)
    end
    assert.same(before, pipes())
  end)

  it("leaves the standard descriptors alone and is not inherited", function()
    local result = scratch.dir "result" .. "/result"
    local path = scratch.dir "script" .. "/script.lua"
    local file = assert(io.open(path, "w"))
    file:write(([[package.path, package.cpath = %q, %q
      local core, lfs = require "bough.core", require "lfs"
      local out = assert(io.open(%q, "w"))
      local function pipes(visit)
        for name in lfs.dir "/proc/self/fd" do
          local target = lfs.symlinkattributes("/proc/self/fd/" .. name, "target") or ""
          if target:find "^pipe:" then visit(name, target) end
        end
      end
      local before = {}
      pipes(function(name, target) before[name] = target end)
      local reader, writer = core.pipe()
      pipes(function(name, target)
        if before[name] ~= target then
          local info <close> = io.open("/proc/self/fdinfo/" .. name)
          local flags = tonumber(info:read "a":match "flags:%%s*(%%d+)", 8)
          out:write(tonumber(name) < 3 and "low " or "high ", flags & 0x80000 ~= 0 and "ours\n" or "everybody's\n")
        end
      end)
      ]]):format(package.path, package.cpath, result))
    file:close()
    os.execute(("%s %s 0<&- 1>&- 2>&-"):format(arg and arg[-1] or "lua5.4", path))
    assert.equal("high ours\nhigh ours\n", content(result))
  end)

  describe("reader:read", function()
    local numerals = { "12", "-7", "0x1F", "0X.8p1", "3.5e-2", "1e", "0x", ".", "+", "-.5", "1..2", "1e+5x", "00x1",
      "nan", "inf", "1e400", "0x1p-3", "99999999999999999999", "0xffffffffffffffffff", "1_000", "5e+-3", "\v\f\r 8" }

    it("knows Lua's numerals", function()
      local long = ("1"):rep(199)
      for _, numeral in ipairs { long, long .. "2", long .. "23", (" "):rep(5000) .. "7",
        "0x" .. ("f"):rep(198), "0x" .. ("f"):rep(199), ("9"):rep(200) .. "." } do
        numerals[#numerals + 1] = numeral
      end
      for _, numeral in ipairs(numerals) do
        for _, after in ipairs { "", " rest", "\nrest" } do
          local file <close> = file_with(numeral .. after)
          local expected = table.pack(file:read("n", "a"))
          local reader <close> = pipe_with(numeral .. after)
          local got = table.pack(reader:read("n", "a"))
          assert.same(expected, got, numeral .. after)
          assert.equal(math.type(expected[1]), math.type(got[1]))
          assert.equal(file:read "a", reader:read "a", numeral)
        end
      end
    end)

    it("does what file:read does, however the bytes come", function()
      local seed = tonumber(os.getenv "BOUGH_TEST_SEED") or os.time()
      math.randomseed(seed)
      local pieces = { "\n", "\n\n", " ", "\0", "\r\n", "12", "0x1p4", "-3.5", "word", "\255\254", "  \t 7" }
      local formats = { "n", "l", "L", "a", "*l", "*L", "*n", "line", "number", 0, 1, 2, 7, 100.0, 5000, 70000 }
      for round = 1, 60 do
        local parts = {}
        for i = 1, math.random(0, 400) do
          local kind = math.random(20)
          if kind == 1 then
            parts[i] = ("long"):rep(math.random(3000))
          elseif kind == 2 then
            parts[i] = tostring(math.random() * 10 ^ math.random(-5, 20))
          else
            parts[i] = pieces[math.random(#pieces)]
          end
        end
        local text = table.concat(parts)
        local file <close> = file_with(text)
        local reader <close>, writer = core.pipe()
        run(function()
          local feeder = trickle(writer, text, 10 ^ math.random(0, 5))
          for call = 1, 400 do
            local wanted = {}
            for i = 1, math.random(0, 3) do
              -- "a" would end most rounds too early
              local pick = formats[math.random(#formats)]
              wanted[i] = pick == "a" and math.random(10) > 1 and "l" or pick
            end
            local expected = table.pack(file:read(table.unpack(wanted)))
            local got = table.pack(reader:read(table.unpack(wanted)))
            assert.same(expected, got,
              ("seed %d, round %d, call %d: %s"):format(seed, round, call, table.concat(wanted, ",")))
          end
          assert.equal(file:read "a", reader:read "a")
          feeder:wait()
        end)
      end
    end)

    it("gives with c whatever is there", function()
      local reader <close>, writer = core.pipe()
      local _ <close> = writer
      run(function()
        writer:write "one\ntwo"
        assert.equal("one\ntwo", reader:read "c")
        local late = spawn(function() return reader:read("c", "c") end)
        turns(0)
        core.sleep(0)
        writer:write "x"
        core.sleep(0)
        core.sleep(0)
        assert.equal("waiting", late.status)
        writer:write "yz"
        assert.same({ "x", "yz" }, { late:wait() })
        writer:write "ab\ncd"
        assert.same({ "ab", "cd" }, { reader:read("l", "c") })
        writer:write("rest"):close()
        assert.same({ "re", "st" }, { reader:read(2, "c") })
        assert.is_nil(reader:read "c")
        assert.is_nil(reader:read "*chunk")
      end)
    end)

    it("is sticky at the end", function()
      local reader <close> = pipe_with "abc"
      assert.equal("abc", reader:read "a")
      for _ = 1, 2 do
        assert.equal("", reader:read "a")
        assert.same({ n = 1 }, table.pack(reader:read "l"))
        assert.same({ n = 1 }, table.pack(reader:read(0)))
        assert.same({ n = 1 }, table.pack(reader:read(10)))
        assert.same({ n = 1 }, table.pack(reader:read "n"))
        assert.same({ "", n = 2 }, table.pack(reader:read("a", "l", "c")))
      end
    end)

    it("passes every byte as it is", function()
      local bytes = {}
      for i = 0, 255 do bytes[#bytes + 1] = string.char(i) end
      local text = table.concat(bytes):rep(1000)
      local reader <close>, writer = core.pipe()
      run(function()
        trickle(writer, text, 20000)
        assert.is_true(text == reader:read "a")
      end)
    end)

    it("refuses other formats, and reads nothing then", function()
      local reader <close> = pipe_with "text\n"
      for _, format in ipairs { "x", "", "*", "**l", -1, 1.5, {}, true, "10", math.huge } do
        local problem = raises("invalid", reader.read, reader, "l", format)
        assert.equal("reader:read", problem.op)
        raises("invalid", reader.lines, reader, format)
      end
      assert.matches("x is not a format", raises("invalid", reader.read, reader, "x").message)
      assert.matches("1.5 is not a number of bytes", raises("invalid", reader.read, reader, 1.5).message)
      raises("invalid", reader.read, reader, nil)
      assert.matches("expected a reader, not number", raises("invalid", reader.read, 1).message)
      raises("invalid", reader.read)
      assert.equal("text", reader:read())
    end)

    it("reads long texts and long lines", function()
      local text = ("0123456789abcdef"):rep(2 * MiB)
      local reader <close>, writer = core.pipe()
      run(function()
        local feeder = spawn(function() writer:write(text, "\n", text):close() end)
        assert.is_true(text == reader:read "l")
        assert.is_true(text == reader:read "a")
        feeder:wait()
      end)
    end)

    it("reads counts larger than any buffer", function()
      local text = ("0123456789abcde"):rep(MiB)
      local reader <close>, writer = core.pipe()
      run(function()
        spawn(function() writer:write(text):close() end)
        assert.is_true(text:sub(1, 5 * MiB) == reader:read(5 * MiB))
        assert.is_true(text:sub(5 * MiB + 1) == reader:read(1 << 40))
        assert.is_nil(reader:read(1 << 40))
      end)
    end)

    for name, inside in pairs(contexts) do
      it("waits in " .. name, function()
        local reader <close>, writer = core.pipe()
        local feeder = spawn(function()
          for i = 1, 100 do
            writer:write("line ", i, "\n")
            core.sleep(0)
          end
          writer:close()
        end)
        inside(function()
          for i = 1, 99 do assert.equal("line " .. i, reader:read "l") end
          assert.equal("line 100\n", reader:read "a")
        end)
        feeder:wait()
      end)
    end

    local halves = {
      { "a text without an end", "a" },
      { "a line without an end", "l" },
      { "a line without an end", "L" },
      { "first line\nsecond, without an end", "l", "l" },
      { "0123456789rest", 10, "l" },
      { "0123456789", 11 },
      { "   12", "n" },
      { "12 13 ", "n", "n", "n" },
      { "line\n" .. ("x"):rep(100000), "l", "a" },
    }

    it("loses nothing when its time is over", function()
      for _, half in ipairs(halves) do
        for _, inside in pairs(contexts) do
          local reader <close>, writer = core.pipe()
          local _ <close> = writer
          local feeder = spawn(function() writer:write(half[1]) end)
          inside(function()
            for _ = 1, 2 do
              raises("timeout", deadline, 0.005, reader.read, reader, table.unpack(half, 2))
            end
          end)
          feeder:wait()
          writer:close()
          assert.is_true(half[1] == reader:read "a")
        end
      end
    end)

    it("loses nothing when its task is cancelled", function()
      for _, half in ipairs(halves) do
        local reader <close>, writer = core.pipe()
        local _ <close> = writer
        run(function()
          local task = spawn(reader.read, reader, table.unpack(half, 2))
          writer:write(half[1])
          for _ = 1, 5 do core.sleep(0) end
          assert.equal("waiting", task.status)
          task:cancel()
          raises("cancelled", task.wait, task)
          writer:write("!"):close()
          assert.is_true(half[1] .. "!" == reader:read "a")
        end)
      end
    end)

    it("gives each byte to one of several tasks", function()
      local reader <close>, writer = core.pipe()
      local seen, count = {}, 0
      run(function()
        local tasks = {}
        for i = 1, 5 do
          tasks[i] = spawn(function()
            for line in reader:lines(i % 2 == 0 and "l" or "L") do
              line = line:gsub("\n", "")
              assert.is_nil(seen[line])
              seen[line] = true
              count = count + 1
              if math.random(4) == 1 then core.sleep(0) end
            end
          end)
        end
        local lines = {}
        for i = 1, 2000 do lines[i] = "line " .. i .. (" "):rep(i % 100) .. "\n" end
        trickle(writer, table.concat(lines), 3000):wait()
        for _, task in ipairs(tasks) do task:wait() end
      end)
      assert.equal(2000, count)
    end)

    it("tells another task what it leaves", function()
      local reader <close>, writer = core.pipe()
      local _ <close> = writer
      run(function()
        local big = spawn(reader.read, reader, 100)
        local small = spawn(reader.read, reader, 3)
        core.sleep(0)
        writer:write "12345"
        assert.equal("123", small:wait())
        writer:write(("x"):rep(98))
        assert.equal("45" .. ("x"):rep(98), big:wait())
      end)
    end)

    it("lets other tasks and time limits have their turn", function()
      local reader, shell = reader_of "exec cat /dev/zero"
      local others = 0
      run(function()
        local other = spawn(function()
          while true do
            core.sleep(0)
            others = others + 1
          end
        end)
        for _, format in ipairs { 65536, "c", 100 } do
          raises("timeout", deadline, 0.05, function()
            while true do reader:read(format) end
          end)
        end
        raises("timeout", deadline, 0.05, reader.read, reader, "l")
        other:cancel()
      end)
      assert.is_true(others > 10)
      reader:close() -- and the command gets its SIGPIPE
      shell:close()
    end)
  end)

  describe("reader:lines", function()
    it("iterates as file:lines does", function()
      local text = "one\n\ntwo 3\n4 five\nlast"
      for _, formats in ipairs { {}, { "l" }, { "L" }, { 2 }, { "l", "L" }, { 1, "n" }, { "n" }, { "*l", 0 } } do
        local file <close> = file_with(text)
        local reader <close> = pipe_with(text)
        local expected, got = {}, {}
        for a, b in file:lines(table.unpack(formats)) do expected[#expected + 1] = { a, b } end
        for a, b in reader:lines(table.unpack(formats)) do got[#got + 1] = { a, b } end
        assert.same(expected, got)
      end
    end)

    for name, inside in pairs(contexts) do
      it("waits in " .. name, function()
        local reader <close>, writer = core.pipe()
        local lines = {}
        for i = 1, 5000 do lines[i] = ("%d:%s"):format(i, ("y"):rep(math.random(0, 90))) end
        trickle(writer, table.concat(lines, "\n"), 5000)
        local i = 0
        inside(function()
          for line in reader:lines() do
            i = i + 1
            assert.equal(lines[i], line)
          end
        end)
        assert.equal(5000, i)
      end)
    end

    it("goes on where another iterator stopped", function()
      local reader <close> = pipe_with "1\n2\n3\n"
      assert.equal("1", reader:lines()())
      assert.equal("2", reader:read())
      assert.equal("3\n", reader:lines "L"())
      assert.is_nil(reader:lines()())
    end)

    it("raises when the stream was closed", function()
      local reader, writer <close> = core.pipe "stdout"
      writer:write "a\nb\n"
      local nextline = reader:lines()
      assert.equal("a", nextline())
      reader:close()
      assert.equal("stdout is closed", raises("closed", nextline).message)
      raises("closed", reader.lines, reader)
    end)

    it("refuses more formats than can be kept", function()
      local reader <close> = pipe_with(("x"):rep(250))
      local formats = {}
      for i = 1, 250 do formats[i] = 1 end
      assert.equal(250, select("#", reader:lines(table.unpack(formats))()))
      formats[251] = 1
      raises("invalid", reader.lines, reader, table.unpack(formats))
    end)
  end)

  describe("reader:close", function()
    it("wakes whoever waits, with an error", function()
      local reader, writer <close> = core.pipe "stdout"
      writer:write "half a line"
      run(function()
        local tasks = { spawn(reader.read, reader, "l"), spawn(reader.lines(reader)), spawn(reader.read, reader, "a") }
        core.sleep(0)
        reader:close()
        reader:close()
        for _, task in ipairs(tasks) do
          assert.equal("stdout is closed", raises("closed", task.wait, task).message)
        end
      end)
      raises("closed", reader.read, reader)
      raises("closed", reader.read, reader, 0)
    end)

    it("comes with the collector", function()
      local reader, writer <close> = core.pipe()
      writer:write "x"
      assert.equal("x", reader:read(1))
      reader = nil -- luacheck: ignore
      collectgarbage()
      assert.equal(32, raises("closed", writer.write, writer, "y").errno)
    end)

    it("stays done in finalisers", function()
      local output, good = script [[
        local reader, writer = core.pipe()
        local function later(fn) return setmetatable({}, { __gc = fn }) end
        -- finalisers run in the opposite order: these come before the streams' own
        keep = { reader, writer, later(function() print(reader:read(1)) end) }
        keep[4] = later(function() print(reader, writer, reader.closed, writer.closed, writer.written) end)
        writer:write "x" ]]
      assert.is_true(good, output)
      assert.matches("reader pipe %(open%)\twriter pipe %(open%)\tfalse\tfalse\t1\nx\n", output)
      output, good = script [[
        local ends = {}
        keep = setmetatable({}, { __gc = function()
          local reader, writer = ends[1], ends[2]
          print(reader, writer, reader.closed, writer.closed, writer.written)
          print(select(2, pcall(reader.read, reader)))
          print(select(2, pcall(writer.write, writer, "x")))
          reader:close() writer:close()
        end })
        ends[1], ends[2] = core.pipe() ]]
      assert.is_true(good, output)
      assert.equal("reader pipe (closed)\twriter pipe (closed)\ttrue\ttrue\t0\n" ..
        "reader:read: pipe is closed\nwriter:write: pipe is closed\n", output)
    end)
  end)

  describe("writer:write", function()
    it("takes strings and numbers and returns the writer", function()
      local reader <close>, writer = core.pipe()
      local _ <close> = writer
      assert.equal(writer, writer:write("a", 1, 2.5, "", "\0b"))
      assert.equal(writer, writer:write():write "":flush())
      writer:close()
      assert.equal("a12.5\0b", reader:read "a")
    end)

    it("refuses other values, and writes nothing then", function()
      local reader <close>, writer = core.pipe()
      local _ <close> = writer
      for _, value in ipairs { {}, true, print } do
        local problem = raises("invalid", writer.write, writer, "text", value)
        assert.equal("expected strings and numbers, not " .. type(value), problem.message)
        assert.equal("writer:write", problem.op)
      end
      raises("invalid", writer.write, writer, nil)
      assert.matches("expected a writer", raises("invalid", writer.write, "x").message)
      writer:close()
      assert.equal("", reader:read "a")
    end)

    it("waits for room", function()
      local reader <close>, writer = core.pipe()
      local _ <close> = writer
      run(function()
        local task = spawn(function()
          while true do writer:write(("z"):rep(1000)) end
        end)
        for _ = 1, 200 do core.sleep(0) end
        assert.equal("waiting", task.status)
        -- a pipe and a queue
        assert.is_true(writer.written <= 65536 + 65536, writer.written)
        assert.is_true(writer.written >= 65536, writer.written)
        task:cancel()
        raises("cancelled", task.wait, task)
        local written = writer.written
        writer:close()
        assert.equal(written, #reader:read "a")
      end)
    end)

    it("keeps the memory flat", function()
      local chunk = ("0123456789abcdef"):rep(4096)
      local reader <close>, writer = core.pipe()
      local before = resident()
      local most = 0
      run(function()
        spawn(function()
          for _ = 1, 4096 do writer:write(chunk) end
          writer:close()
        end)
        local size = 0
        for part in reader:lines "c" do
          size = size + #part
          if size % (16 * MiB) < #part then most = math.max(most, resident()) end
        end
        assert.equal(256 * MiB, size)
      end)
      -- strings that the collector has not swept yet are in it, and what a sanitizer holds back
      assert.is_true(most - before < 128 * MiB, ("%d KiB more"):format((most - before) >> 10))
    end)

    it("never mixes two calls", function()
      local reader <close>, writer = core.pipe()
      run(function()
        local tasks = {}
        for i = 1, 6 do
          tasks[i] = spawn(function()
            for round = 1, 4 do
              writer:write(("%d "):format(i), tostring(i):rep(round * 70000), "\n")
              writer:write(("%d %s\n"):format(i, tostring(i):rep(round)))
            end
          end)
        end
        spawn(function()
          for _, task in ipairs(tasks) do task:wait() end
          writer:close()
        end)
        local count, sizes = 0, {}
        for line in reader:lines() do
          local i, rest = line:match "^(%d) (%d+)$"
          assert.is_truthy(i, line:sub(1, 100))
          assert.equal(rest, i:rep(#rest))
          -- first come, first served: each task's own calls stay in their order
          sizes[i] = sizes[i] or {}
          table.insert(sizes[i], #rest)
          count = count + 1
        end
        assert.equal(48, count)
        for _, list in pairs(sizes) do assert.same({ 70000, 1, 140000, 2, 210000, 3, 280000, 4 }, list) end
      end)
    end)

    it("serves whoever came first", function()
      local reader <close>, writer = core.pipe()
      local _ <close> = writer
      run(function()
        local greedy = spawn(function()
          while true do writer:write(("g"):rep(300000)) end
        end)
        core.sleep(0)
        local modest = spawn(function() writer:write "modest" end)
        local seen = 0
        while modest.status ~= "done" do
          seen = seen + #reader:read "c"
          assert.is_true(seen < 2 * MiB, "the second writer does not get its turn")
          core.sleep(0)
        end
        greedy:cancel()
      end)
    end)

    it("tells how far it came when it is cancelled", function()
      local text = ("0123456789"):rep(400000) -- more than the largest pipe holds
      local reader <close>, writer = core.pipe()
      local _ <close> = writer
      run(function()
        local task = spawn(writer.write, writer, text)
        core.sleep(0)
        local first = reader:read(100000)
        core.sleep(0)
        task:cancel()
        raises("cancelled", task.wait, task)
        local written = writer.written
        assert.is_true(written >= 100000 and written < #text)
        writer:write("end"):close()
        assert.is_true(text:sub(1, written) .. "end" == first .. reader:read "a")
      end)
      local other <close>, full = core.pipe()
      local _ <close> = full
      raises("timeout", deadline, 0.005, full.write, full, text)
      assert.equal(full.written, #other:read(full.written))
    end)

    for name, inside in pairs(contexts) do
      it("waits in " .. name, function()
        local text = ("0123456789"):rep(100000)
        local reader <close>, writer = core.pipe()
        local _ <close> = writer
        local task = spawn(reader.read, reader, "a")
        inside(function() writer:write(text, text):close() end)
        assert.is_true(text .. text == run(task.wait, task))
      end)
    end

    it("raises when nobody reads any more", function()
      local reader, writer <close> = core.pipe "stdin"
      writer:write "x"
      reader:close()
      for _ = 1, 2 do
        local problem = raises("closed", writer.write, writer, "y")
        assert.equal("nobody reads stdin any more", problem.message)
        assert.same({ 32, "EPIPE", "writer:write" }, { problem.errno, problem.code, problem.op })
        raises("closed", writer.flush, writer)
      end
      assert.equal("writer stdin (nobody reads it)", tostring(writer))
      assert.is_false(writer.closed)
      writer:close()
    end)

    it("hears that nobody reads any more while it waits", function()
      local text = ("x"):rep(4 * MiB)
      local reader, writer <close> = core.pipe()
      run(function()
        local tasks = { spawn(writer.write, writer, text), spawn(writer.write, writer, "y") }
        core.sleep(0)
        reader:close()
        for _, task in ipairs(tasks) do
          assert.equal("EPIPE", raises("closed", task.wait, task).code)
        end
      end)
      local other, full <close> = core.pipe()
      run(function()
        local queued = 0
        while full.written < 65536 + 1000 do
          full:write(("q"):rep(1000))
          queued = queued + 1
        end
        local task = spawn(full.flush, full)
        core.sleep(0)
        other:close()
        assert.equal("EPIPE", raises("closed", task.wait, task).code)
      end)
    end)

    it("raises no signal, whatever the host has set", function()
      local output, good, how, code = script [[
        local reader, writer = core.pipe()
        reader:close()
        for _ = 1, 3 do print(pcall(writer.write, writer, "x")) end
        print "alive" ]]
      assert.matches("nobody reads pipe any more.*alive", output)
      assert.same({ true, "exit", 0 }, { good, how, code })
    end)

    it("raises after close", function()
      local reader <close>, writer = core.pipe "stdin"
      writer:close()
      writer:close()
      writer:write_eof()
      assert.equal("stdin is closed", raises("closed", writer.write, writer, "x").message)
      assert.is_nil(reader:read "l")
    end)
  end)

  describe("writer:flush", function()
    it("waits until the kernel has all", function()
      local reader <close>, writer = core.pipe()
      local _ <close> = writer
      run(function()
        while writer.written <= 65536 do writer:write(("f"):rep(1000)) end
        local task = spawn(writer.drain, writer)
        for _ = 1, 5 do core.sleep(0) end
        assert.equal("waiting", task.status)
        reader:read(65536)
        assert.equal(writer, task:wait())
        assert.equal(writer, writer:flush())
      end)
    end)
  end)

  describe("writer:close", function()
    it("does not wait, and what is queued still goes", function()
      local reader <close>, writer = core.pipe()
      run(function()
        local size = 0
        while size <= 65536 + 30000 do
          writer:write(("c"):rep(1000))
          size = size + 1000
        end
        writer:close()
        assert.is_true(writer.closed)
        assert.equal(size, #reader:read "a")
      end)
    end)

    it("comes with the collector, and what is queued still goes", function()
      local reader <close>, writer = core.pipe()
      run(function()
        local size = 0
        while size <= 65536 + 30000 do
          writer:write(("c"):rep(1000))
          size = size + 1000
        end
        writer = nil
        collectgarbage()
        assert.equal(size, #reader:read "a")
      end)
    end)

    it("wakes whoever writes, with an error", function()
      local reader <close>, writer = core.pipe "stdin"
      run(function()
        local text = ("w"):rep(4 * MiB)
        local tasks = { spawn(writer.write, writer, text), spawn(writer.write, writer, "next") }
        core.sleep(0)
        writer:close()
        for _, task in ipairs(tasks) do
          assert.equal("stdin is closed", raises("closed", task.wait, task).message)
        end
        assert.equal(writer.written, #reader:read "a")
      end)
    end)

    it("may be left to the end of the state", function()
      local output, good = script [[
        readers, writers = {}, {}
        for i = 1, 20 do
          readers[i], writers[i] = core.pipe()
          for _ = 1, 80 do writers[i]:write(("q"):rep(1000)) end
          if i % 2 == 0 then writers[i]:close() end
          core.spawn(writers[i].write, writers[i], ("t"):rep(1000000))
          core.spawn(writers[i].write, writers[i], "line")
          core.spawn(readers[i].read, readers[i], "l")
          if i % 3 == 0 then core.spawn(readers[i].lines(readers[i], "a")) end
        end
        core.on_error(function() end)
        warn "@off"
        core.step(0) core.step(0) core.step(0)
        print "done" ]]
      assert.equal("done\n", output)
      assert.is_true(good)
    end)
  end)

  it("serves requests and replies", function()
    local questions <close>, ask = core.pipe()
    local _ <close> = ask
    local answers <close>, answer = core.pipe()
    local _ <close> = answer
    run(function()
      local server = spawn(function()
        for line in questions:lines() do answer:write(line:upper(), "\n") end
        answer:close()
      end)
      for i = 1, 500 do
        ask:write("request ", i, "\n")
        assert.equal("REQUEST " .. i, answers:read())
      end
      ask:close()
      assert.is_nil(answers:read())
      server:wait()
    end)
  end)

  it("reads what a command writes, to its end", function()
    local reader <close>, shell = reader_of "seq 100000"
    local sum = 0
    for number in reader:lines "n" do sum = sum + number end
    assert.equal(100000 * 100001 // 2, sum)
    shell:close()
  end)

  it("refuses to wait in a finaliser", function()
    local reader <close>, writer = core.pipe()
    local _ <close> = writer
    writer:write "there"
    local outcome
    setmetatable({}, { __gc = function()
      outcome = { reader:read(5), select(2, pcall(reader.read, reader, 1)) }
    end })
    collectgarbage()
    assert.equal("there", outcome[1])
    assert.equal("state", outcome[2].kind)
  end)
end)
