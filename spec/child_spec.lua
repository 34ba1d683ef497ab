--- Live processes that run elsewhere (core.child), over an engine made here, whose commands are Lua functions.

local bough = require "bough"
local core = require "bough.core"
local command = require "bough.command"
local fixture = require "spec.engine.fixture"
local lfs = require "lfs"
local live = require "bough.live"
local options = require "bough.options"
local places = require "spec.support.places"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

local MIB = 1 << 20
local KILL, TERM, INT = 9, 15, 2

-- Every byte there is, and about as many bytes as asked for.
local function binary(size)
  local all = {}
  for byte = 0, 255 do all[byte + 1] = string.char(byte) end
  local text = table.concat(all)
  return text:rep(size // #text + 1):sub(1, size)
end

local function content(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read "a"
  file:close()
  return text
end

local function entries(directory)
  local names = {}
  for name in lfs.dir(directory) do
    if name ~= "." and name ~= ".." then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

local function open_descriptors()
  local count = 0
  for _ in lfs.dir "/proc/self/fd" do count = count + 1 end
  return count
end

-- Lets everybody who is ready have some turns.
local function turns(n)
  for _ = 1, n or 5 do core.step(0) end
end

local function collect()
  collectgarbage()
  collectgarbage()
end

-- -- an engine -------------------------------------------------------------------------------------

-- What ends a command from outside, in its wait.
local function watch(peer, state, main)
  while true do
    local wish, number, scope = peer:next()
    if not wish then return end
    state.wishes[#state.wishes + 1] = number and ("%s %d %s"):format(wish, number, scope) or wish
    if wish == "close" or not state.is_done and (number == KILL or number == TERM) then
      state.number = state.number or number or KILL
      main:cancel()
    end
  end
end

-- Runs the command until all its output was taken: not what the caller reads himself, which goes on.
local function body_of(peer, state, body)
  local good, result = pcall(body, peer, state)
  state.is_done = true
  if peer.stdout and not peer.kept_stdout then pcall(peer.stdout.flush, peer.stdout) end
  if peer.stderr and not peer.kept_stderr then pcall(peer.stderr.flush, peer.stderr) end
  return good, result
end

-- The time limit is the engine's to keep.
local function limit(seconds, state, main)
  core.sleep(seconds)
  if state.is_done then return end
  state.late = true
  main:cancel()
end

local function execute(peer, state, body)
  local _ <close> = peer
  peer:started(state.pid)
  local main = core.service(body_of, peer, state, body)
  local watcher = core.service(watch, peer, state, main)
  local timer = state.timeout and core.service(limit, state.timeout, state, main)
  local _, good, result = pcall(main.wait, main)
  if good == false and core.is_error(result) and result.kind == "closed" then state.number = 13 end -- SIGPIPE
  if peer.stdout then peer.stdout:close() end
  if peer.stderr then peer.stderr:close() end
  if timer then timer:cancel() end
  if state.late then
    result = { timed_out = true }
  elseif state.number then
    result = { signal = state.number }
  elseif good ~= true then
    peer:fail(result)
    state.over = true
    return
  end
  peer:finish(type(result) == "table" and result or { exit_code = result or 0 })
  watcher:wait()
  state.over = true
end

-- Runs body(peer, state) as a command. -> child, what the engine knows of it
local function launch(spec, body, pid)
  local child, peer = core.child(spec)
  local state = { wishes = {}, pid = pid, timeout = spec.timeout }
  core.service(execute, peer, state, body)
  return child, state
end

-- -- commands ----------------------------------------------------------------------------------------

local function each_chunk(reader, fn)
  while reader do
    local chunk = reader:read "c"
    if not chunk then return end
    fn(chunk)
  end
end

local function cat(peer)
  each_chunk(peer.stdin, function(chunk)
    if peer.stdout then peer.stdout:write(chunk) end
  end)
end

local function count(peer)
  local size = 0
  each_chunk(peer.stdin, function(chunk) size = size + #chunk end)
  peer.stdout:write(size)
end

local function printing(text, code, stream)
  return function(peer)
    if peer[stream or "stdout"] then peer[stream or "stdout"]:write(text) end
    return code
  end
end

local function idle()
  while true do core.sleep(60) end
end

-- One that goes on when `gate.open` is fired.
local function gated(gate, body)
  gate.condition = core.condition()
  function gate.open()
    gate.is_open = true
    gate.condition:fire()
  end
  return function(...)
    while not gate.is_open do gate.condition:wait() end
    return body(...)
  end
end

-- A place as instances are one, for processes and pipelines.
local function place_of(body)
  local place = { states = {} }
  function place:exec(spec)
    local child, state = launch(spec, body, 77)
    self.states[#self.states + 1] = state
    return child
  end
  return place
end

local function popen(body, given)
  given = given or {}
  if given[1] == nil then given[1] = "command" end
  local place = place_of(body)
  local spec, policy = options.spec(given, nil, { op = "popen", live = true })
  return live.start(place, spec, policy, "popen"), place.states[1]
end

local function cmd(body, given)
  given = given or {}
  given[1] = "command"
  return command.new(function(all, none, within)
    local spec, policy = options.spec(all, none, { op = "cmd", live = true })
    spec.eager = within.eager
    return live.start(place_of(body), spec, policy, "cmd")
  end, given, nil, "cmd")
end

describe("core.child", function()
  local descriptors

  before_each(function()
    collect()
    turns()
    descriptors = open_descriptors()
  end)

  -- nothing may be left in the loop or open by a test
  after_each(function()
    collect()
    turns()
    collect()
    turns()
    assert.is_false(core.step(0), "tasks are left")
    assert.is_nil(core.timeout(), "something is left in the loop")
    assert.equal(descriptors, open_descriptors())
  end)

  local function everywhere(name, body)
    for _, place in ipairs(places) do
      it(name .. ", " .. place.name, function() place.call(body) end)
    end
  end

  describe("gives two sides", function()
    it("that say what they are", function()
      local child, peer = core.child { stdin = core.PIPE }
      assert.equal("bough.child", getmetatable(child).__name)
      assert.equal("bough.peer", getmetatable(peer).__name)
      assert.equal("peer (starting)", tostring(peer))
      assert.same({ false, false, false }, { child.over, child.ended, child.terminal })
      assert.is_nil(child.pid)
      assert.same({ false, false, false, false },
        { peer.given_up, peer.over, peer.kept_stdout, peer.kept_stderr })
      assert.equal("reader stdin (open)", tostring(peer.stdin))
      assert.equal("writer stdout (open)", tostring(peer.stdout))
      assert.equal("writer stderr (open)", tostring(peer.stderr))
      assert.is_nil(peer.nonesuch)
      peer:started(12)
      child:started()
      assert.equal("peer (running)", tostring(peer))
      assert.equal(12, child.pid)
      peer:finish { exit_code = 0 }
      assert.equal("peer (over)", tostring(peer))
      assert.same({ true, true, true }, { peer.over, child.over, child.ended })
      peer:close()
      assert.equal(0, child:wait().exit_code)
    end)

    it("with the same streams each time", function()
      local _, peer = core.child { stdin = core.PIPE, stdout = core.PIPE, stderr = core.STDOUT }
      assert.equal(peer.stdin, peer.stdin)
      assert.equal(peer.stdout, peer.stdout)
      assert.equal(peer.stdout, peer.stderr)
      assert.same({ true, true }, { peer.kept_stdout, peer.kept_stderr })
      local _, other = core.child { stdout = false, stderr = core.PIPE }
      assert.is_nil(other.stdin)
      assert.is_nil(other.stdout)
      assert.same({ false, true }, { other.kept_stdout, other.kept_stderr })
      assert.not_equal(peer.stdout, other.stderr)
    end)

    it("and the streams of the caller once", function()
      local child, peer = core.child { stdin = core.PIPE, stdout = core.PIPE }
      local stdin, stdout, stderr = child:streams()
      assert.equal("writer stdin (open)", tostring(stdin))
      assert.equal(1, stdout.fd)
      assert.is_nil(stderr)
      raises("state", child.streams, child)
      peer:close()
    end)

    it("unless the spec is none", function()
      assert.is_false(pcall(core.child))
      assert.is_false(pcall(core.child, "x"))
      raises("unsupported", core.child, { pty = { rows = 24, cols = 80 } })
      raises("unsupported", core.child, { stdout = 12 })
      raises("unsupported", core.child, { stdin = 12 })
      raises("not_found", core.child, { stdin = { path = "/nonesuch/file" } })
      raises("not_found", core.child, { stdout = "/nonesuch/file" })
      local file = io.tmpfile()
      file:close()
      raises("closed", core.child, { stdin = file })
      local reader, writer = core.pipe()
      reader:close()
      writer:close()
      raises("closed", core.child, { stdin = reader })
      raises("closed", core.child, { stdout = writer })
    end)
  end)

  describe("reads its stdin from", function()
    local function fed(spec, ...)
      local child = launch(spec, cat, ...)
      return child:wait().stdout
    end

    everywhere("nothing, text, binary data, a function", function()
      assert.equal("", fed {})
      assert.equal("", fed { stdin = false })
      assert.equal("", fed { stdin = "" })
      assert.equal("text", fed { stdin = "text" })
      local data = binary(300000)
      assert.is_true(data == fed { stdin = data })
      local pieces = { "one ", ("x"):rep(200000), " two\0" }
      local at = 0
      assert.equal("one " .. ("x"):rep(200000) .. " two\0", fed { stdin = function()
        at = at + 1
        return pieces[at]
      end })
      assert.equal(4, at)
    end)

    everywhere("a path, a Lua file, a reader", function()
      local data = binary(200000)
      local path = scratch.file(data)
      local file <close> = assert(io.open(path, "rb"))
      file:setvbuf "no"
      file:seek("set", 100)
      assert.is_true(data:sub(101) == fed { stdin = file })
      assert.is_true(data == fed { stdin = { path = path } })
      local reader, writer = core.pipe()
      writer:write "from a pipe":close()
      assert.equal("from a pipe", fed { stdin = reader })
      assert.is_true(reader.closed)
    end)

    it("a reader of which somebody has read some", function()
      local reader, writer = core.pipe()
      writer:write("first\n" .. ("x"):rep(50000)):close()
      assert.equal("first", reader:read())
      assert.equal(("x"):rep(50000), fed { stdin = reader })
    end)

    it("a reader at its end", function()
      local reader, writer = core.pipe()
      writer:close()
      assert.equal("", reader:read "a")
      assert.equal("", fed { stdin = reader })
    end)

    everywhere("what the caller writes", function()
      local child = launch({ stdin = core.PIPE }, cat)
      local stdin = child:streams()
      stdin:write("a", 1, "\n")
      stdin:close()
      assert.equal("a1\n", child:wait().stdout)
    end)

    it("10 MiB, in each way", function()
      local data = binary(10 * MIB)
      local path = scratch.file(data)
      local function counted(spec)
        local child = launch(spec, count)
        return math.tointeger(tonumber(child:wait().stdout))
      end
      assert.equal(10 * MIB, counted { stdin = data })
      assert.equal(10 * MIB, counted { stdin = { path = path } })
      local file <close> = assert(io.open(path, "rb"))
      assert.equal(10 * MIB, counted { stdin = file })
      local at = 0
      assert.equal(10 * MIB, counted { stdin = function()
        at = at + 100001
        local piece = data:sub(at - 100000, at)
        return piece ~= "" and piece or nil
      end })
      local reader, writer = core.pipe()
      local feeder = core.spawn(function() writer:write(data):close() end)
      assert.equal(10 * MIB, counted { stdin = reader })
      feeder:wait()
      local child = launch({ stdin = core.PIPE }, count)
      local stdin = child:streams()
      feeder = core.spawn(function() stdin:write(data):close() end)
      assert.equal(10 * MIB, math.tointeger(tonumber(child:wait().stdout)))
      feeder:wait()
    end)

    it("no more than it wants", function()
      local calls = 0
      local child = launch({ stdin = function()
        calls = calls + 1
        return ("x"):rep(65536)
      end }, function(peer) peer.stdout:write(peer.stdin:read(10)) end)
      assert.equal(("x"):rep(10), child:wait().stdout)
      assert.is_true(calls < 64)
      local writer
      child = launch({ stdin = core.PIPE }, function(peer) return #peer.stdin:read(10) end)
      writer = child:streams()
      writer:write(("x"):rep(20))
      assert.equal(10, child:wait().exit_code)
      raises("closed", writer.write, writer, "x")
    end)

    it("slowly: who feeds it waits", function()
      local gate, calls = {}, 0
      local child = launch({ stdin = function()
        calls = calls + 1
        return calls <= 100 and ("x"):rep(65536) or nil
      end }, gated(gate, count))
      assert.is_nil(child:wait(0.05))
      assert.is_true(calls < 10)
      gate.open()
      assert.equal(100 * 65536, math.tointeger(tonumber(child:wait().stdout)))
    end)
  end)

  describe("sends its output to", function()
    everywhere("the result", function()
      local child = launch({}, function(peer)
        peer.stdout:write(binary(1000))
        peer.stderr:write "warning\n"
        return 3
      end)
      local result = child:wait()
      assert.equal(binary(1000), result.stdout)
      assert.equal("warning\n", result.stderr)
      assert.equal(3, result.exit_code)
      assert.same({}, result.truncated)
      assert.equal(result, child:wait())
    end)

    it("nowhere", function()
      local child = launch({ stdout = false, stderr = false }, function(peer)
        assert.is_nil(peer.stdout)
        assert.is_nil(peer.stderr)
      end)
      local result = child:wait()
      assert.is_nil(result.stdout)
      assert.is_nil(result.stderr)
    end)

    everywhere("a function, in chunks", function()
      local chunks = {}
      local child = launch({ stdout = function(chunk) chunks[#chunks + 1] = chunk end }, printing(binary(500000)))
      local result = child:wait()
      assert.is_nil(result.stdout)
      assert.equal("", result.stderr)
      assert.is_true(binary(500000) == table.concat(chunks))
    end)

    everywhere("functions, in lines", function()
      local out, err = {}, {}
      local child = launch({
        text = "lines", stdout = function(line) out[#out + 1] = line end,
        stderr = function(line) err[#err + 1] = line end,
      }, function(peer)
        peer.stdout:write "one\n\ntw"
        peer.stdout:flush()
        core.sleep(0)
        peer.stdout:write "o\nlast"
        peer.stderr:write("x\n", ("y"):rep(100000))
      end)
      child:wait()
      assert.same({ "one", "", "two", "last" }, out)
      assert.same({ "x", ("y"):rep(100000) }, err)
    end)

    it("functions that wait", function()
      local seen = {}
      local child = launch({ stdout = function(chunk)
        core.sleep(0.001)
        seen[#seen + 1] = chunk
      end }, printing(("x"):rep(300000)))
      assert.equal(0, child:wait().exit_code)
      assert.equal(300000, #table.concat(seen))
    end)

    everywhere("one stream for both", function()
      local child = launch({ stderr = core.STDOUT }, function(peer)
        peer.stdout:write "a"
        peer.stderr:write "b"
        peer.stdout:write "c"
      end)
      local result = child:wait()
      assert.equal("abc", result.stdout)
      assert.is_nil(result.stderr)
    end)

    it("one stream for both, whatever that is", function()
      local function both(peer)
        if peer.stdout then
          peer.stdout:write "a"
          peer.stderr:write "b"
        end
      end
      local child = launch({ stdout = false, stderr = core.STDOUT }, both)
      assert.is_nil(child:wait().stdout)
      local chunks = {}
      child = launch({ stdout = function(chunk) chunks[#chunks + 1] = chunk end, stderr = core.STDOUT }, both)
      child:wait()
      assert.equal("ab", table.concat(chunks))
      local reader, writer = core.pipe()
      child = launch({ stdout = writer, stderr = core.STDOUT }, both)
      child:wait()
      assert.equal("ab", reader:read "a")
      reader, writer = core.pipe()
      child = launch({ stdout = writer, stderr = writer }, both)
      child:wait()
      assert.equal("ab", reader:read "a")
      child = launch({ stdout = core.PIPE, stderr = core.STDOUT }, both)
      local _, stdout, stderr = child:streams()
      assert.is_nil(stderr)
      assert.equal("ab", stdout:read "a")
      child:wait()
    end)

    everywhere("a path, a Lua file, a writer", function()
      local directory = scratch.dir "output"
      local child = launch({ stdout = directory .. "/out", stderr = directory .. "/err" }, function(peer)
        peer.stdout:write(binary(200000))
        peer.stdout:flush()
        assert.is_nil(content(directory .. "/out")) -- not before it is whole
        peer.stderr:write "e"
        return 1
      end)
      local result = child:wait()
      assert.is_nil(result.stdout)
      assert.is_true(binary(200000) == content(directory .. "/out"))
      assert.equal("e", content(directory .. "/err"))
      assert.same({ "err", "out" }, entries(directory))
      local file <close> = assert(io.open(directory .. "/file", "wb"))
      file:write "before "
      child = launch({ stdout = file }, printing "after")
      child:wait()
      assert.equal("before after", content(directory .. "/file"))
      local reader, writer = core.pipe()
      child = launch({ stderr = writer }, printing("to a pipe", 0, "stderr"))
      child:wait()
      assert.equal("to a pipe", reader:read "a")
    end)

    it("10 MiB, in each way", function()
      local data = binary(10 * MIB)
      local directory = scratch.dir "output"
      local child = launch({ truncate_output_at = 16 * MIB }, printing(data))
      assert.is_true(data == child:wait().stdout)
      child = launch({ stdout = directory .. "/out" }, printing(data))
      child:wait()
      assert.is_true(data == content(directory .. "/out"))
      local size = 0
      child = launch({ stdout = function(chunk) size = size + #chunk end }, printing(data))
      child:wait()
      assert.equal(#data, size)
      child = launch({ stdout = core.PIPE }, printing(data))
      local _, stdout = child:streams()
      assert.is_true(data == stdout:read "a")
      assert.equal(0, child:wait().exit_code)
      local reader, writer = core.pipe()
      child = launch({ stdout = writer }, printing(data))
      assert.is_true(data == reader:read "a")
      assert.equal(0, child:wait().exit_code)
    end)

    it("many lines, one call each", function()
      local lines = 0
      local child = launch({ text = "lines", stdout = function() lines = lines + 1 end },
        function(peer)
          for i = 1, 200 do peer.stdout:write(("%d\n"):format(i):rep(1000)) end
        end)
      child:wait()
      assert.equal(200000, lines)
    end)

    it("the result, up to a limit, and counts what is dropped here and elsewhere", function()
      local child = launch({ truncate_output_at = 1000 }, function(peer)
        peer.stdout:write(("x"):rep(1500))
        peer.stderr:write "y"
        return { exit_code = 0, stdout_dropped = 70, stderr_dropped = 3 }
      end)
      local result = child:wait()
      assert.equal(("x"):rep(1000), result.stdout)
      assert.same({ stdout = 570, stderr = 3 }, result.truncated)
      child = launch({ truncate_output_at = 0 }, printing "xyz")
      result = child:wait()
      assert.equal("", result.stdout)
      assert.same({ stdout = 3 }, result.truncated)
    end)

    it("a reader slowly: the command waits", function()
      local child, state = launch({ stdout = core.PIPE }, function(peer, state)
        for i = 1, 320 do
          peer.stdout:write(("x"):rep(65536))
          state.count = i
        end
      end)
      local _, stdout = child:streams()
      stdout:read(1)
      for _ = 1, 500 do core.step(0) end
      assert.is_true(state.count < 40, "it wrote " .. state.count)
      assert.equal(320 * 65536 - 1, #stdout:read "a")
      child:wait()
    end)

    it("a function slowly: the command waits", function()
      local release = core.condition()
      local is_held, size = true, 0
      local child, state = launch({ stdout = function(chunk)
        while is_held do release:wait() end
        size = size + #chunk
      end }, function(peer, state)
        for i = 1, 320 do
          peer.stdout:write(("x"):rep(65536))
          state.count = i
        end
      end)
      local waiter = core.spawn(child.wait, child)
      for _ = 1, 500 do core.step(0) end
      assert.is_true(state.count < 40, "it wrote " .. state.count)
      is_held = false
      release:fire()
      waiter:wait()
      assert.equal(320 * 65536, size)
    end)

    it("nobody any more: the command hears of it", function()
      local child, state = launch({ stdout = core.PIPE }, function(peer, state)
        while true do
          local good, problem = pcall(peer.stdout.write, peer.stdout, ("x"):rep(65536))
          if not good then
            state.problem = problem
            return { signal = 13 }
          end
        end
      end)
      local _, stdout = child:streams()
      stdout:read(1)
      stdout:close()
      assert.equal(141, child:wait().exit_code)
      assert.equal("closed", state.problem.kind)
    end)
  end)

  describe("with a file that is to be whole", function()
    local directory
    before_each(function()
      directory = scratch.dir "whole"
      local file <close> = assert(io.open(directory .. "/out", "w"))
      file:write "old"
    end)

    it("puts it there at the end, whatever the code", function()
      local child = launch({ stdout = directory .. "/out" }, printing("new", 7))
      assert.equal(7, child:wait().exit_code)
      assert.equal("new", content(directory .. "/out"))
      assert.same({ "out" }, entries(directory))
    end)

    it("leaves the old one when it is given up", function()
      local child, state = launch({ stdout = directory .. "/out" }, function(peer)
        peer.stdout:write "new":flush()
        idle()
      end)
      fixture.until_true("some output", function() return #entries(directory) == 2 end)
      child:close()
      assert.equal(137, child:wait().exit_code)
      assert.equal("old", content(directory .. "/out"))
      assert.same({ "out" }, entries(directory))
      assert.same({ "close" }, state.wishes)
    end)

    it("leaves the old one when it fails, or is lost", function()
      for _, how in ipairs { "fail", "close" } do
        local child, peer = core.child { stdout = directory .. "/out" }
        peer:started()
        peer.stdout:write "new":flush()
        peer[how](peer, core.error("transport", "the line is dead"))
        raises(how == "fail" and "transport" or "closed", child.wait, child)
        assert.equal("old", content(directory .. "/out"))
        assert.same({ "out" }, entries(directory))
      end
    end)

    it("leaves the old one when nobody waits for either side", function()
      do core.child { stdout = directory .. "/out" } end
      collect()
      assert.equal("old", content(directory .. "/out"))
      assert.same({ "out" }, entries(directory))
    end)

    it("says when it cannot be put there", function()
      local child, peer = core.child { stdout = directory .. "/out", stderr = directory .. "/err" }
      os.remove(directory .. "/out")
      lfs.mkdir(directory .. "/out")
      peer.stdout:write "new":flush()
      peer:finish { exit_code = 0 }
      assert.match("output " .. directory, raises("invalid", child.wait, child).message, 1, true)
      assert.same({ "out" }, entries(directory))
    end)
  end)

  describe("calls functions", function()
    it("in whoever waits, and nowhere else", function()
      local callers = {}
      local child, state = launch({ stdout = function() callers[#callers + 1] = core.current() or "main" end },
        function(peer)
          for i = 1, 5 do
            peer.stdout:write(i):flush()
            core.sleep(0.001)
          end
        end)
      fixture.until_true("the end", function() return state.over end)
      assert.same({}, callers)
      assert.is_true(child.ended)
      assert.is_false(child.over) -- they are still to be called
      child:wait()
      assert.is_true(child.over)
      assert.same({ "main" }, callers)
    end)

    it("in one of several who wait; all get the result", function()
      local chunks = {}
      local child = launch({ stdout = function(chunk)
        chunks[#chunks + 1] = chunk
        core.sleep(0.001)
      end }, function(peer)
        for i = 1, 9 do peer.stdout:write(i):flush() end
        return 4
      end)
      local tasks = {}
      for i = 1, 5 do tasks[i] = core.spawn(child.wait, child) end
      for _, task in ipairs(tasks) do assert.equal(4, task:wait().exit_code) end
      assert.equal("123456789", table.concat(chunks))
    end)

    everywhere("and raises their errors, having given up", function()
      local child, state = launch({ stdout = function() error({ "mine" }, 0) end }, function(peer)
        peer.stdout:write "x":flush()
        idle()
      end)
      for _ = 1, 2 do
        local good, problem = pcall(child.wait, child)
        assert.is_false(good)
        assert.same({ "mine" }, problem)
      end
      fixture.until_true("the end", function() return state.over end)
      assert.same({ "close" }, state.wishes)
      assert.is_true(child.over)
    end)

    it("that may give nothing but strings", function()
      local child = launch({ stdin = function() return {} end }, cat)
      assert.match("must return a string", raises("invalid", child.wait, child).message, 1, true)
    end)

    it("no more when it was given up", function()
      local calls = 0
      local child = launch({ stdout = function() calls = calls + 1 end }, function(peer)
        while true do peer.stdout:write(("x"):rep(65536)) end
      end)
      assert.is_nil(child:wait(0.02))
      assert.is_true(calls > 0)
      child:close()
      local before = calls
      assert.equal(137, child:wait().exit_code)
      assert.equal(before, calls)
    end)
  end)

  describe("has ended", function()
    it("with all that is known of it", function()
      local child = launch({}, function()
        return {
          exit_code = 5, elapsed_time = 2.5, user_time = 1.25, system_time = 0.5, max_rss = 12 * MIB, oom = true,
        }
      end)
      local result = child:wait()
      assert.same({
        exit_code = 5, ok = false, timed_out = false, oom = true, elapsed_time = 2.5, user_time = 1.25,
        system_time = 0.5, max_rss = 12 * MIB, stdout = "", stderr = "", truncated = {},
        resources = { user_time = 1.25, system_time = 0.5, max_rss = 12 * MIB },
      }, result)
      assert.equal("integer", math.type(result.max_rss))
    end)

    it("by a signal or a time limit as any process has", function()
      local child = launch({}, function() return { signal = 15, exit_code = 1 } end)
      local result = child:wait()
      assert.same({ 143, 15, false, false }, { result.exit_code, result.signal, result.ok, result.timed_out })
      child = launch({}, function() return { timed_out = true } end)
      result = child:wait()
      assert.same({ 137, 9, false, true }, { result.exit_code, result.signal, result.ok, result.timed_out })
      child = launch({}, function() return { signal = 0, exit_code = 0, max_rss = -3, user_time = -1 } end)
      result = child:wait()
      assert.is_true(result.ok)
      assert.is_nil(result.signal)
      assert.same({ 0, 0.0 }, { result.max_rss, result.user_time })
    end)

    it("unless the engine talks nonsense", function()
      local child, peer = core.child {}
      raises("invalid", peer.finish, peer)
      raises("invalid", peer.finish, peer, 0)
      for _, wrong in ipairs {
        {}, { exit_code = "x" }, { exit_code = 1.5 }, { exit_code = 1 << 40 }, { signal = 65 }, { signal = -1 },
        { exit_code = 0, user_time = "1" }, { exit_code = 0, max_rss = {} }, { exit_code = 0, stdout_dropped = true },
      } do
        raises("invalid", peer.finish, peer, wrong)
      end
      raises("invalid", peer.started, peer, "x")
      raises("invalid", peer.started, peer, 0)
      raises("invalid", peer.fail, peer)
      raises("invalid", peer.next, peer, -1)
      raises("invalid", peer.finish, child, {})
      raises("invalid", peer.cut, peer, "stdout", "x")
      assert.is_false(pcall(peer.cut, peer, "stdin", core.error("io", "x")))
      assert.is_false(child.over)
      peer:finish { exit_code = 0, max_rss = math.huge, stdout_dropped = 1e30 }
      assert.is_true(child:wait().ok)
      peer:finish { exit_code = 1 }
      peer:fail(core.error("io", "x"))
      peer:started(3)
      assert.equal(0, child:wait().exit_code)
      assert.is_nil(child.pid)
    end)

    it("when what is captured has been written", function()
      local child, peer = core.child { stdout = function() end }
      peer:started()
      while pcall(core.deadline, 0.02, peer.stdout.write, peer.stdout, ("x"):rep(9999)) do turns(1) end
      assert.match("stdout: flush() it first",
        raises("state", peer.finish, peer, { exit_code = 0 }).message, 1, true)
      assert.is_false(peer.over)
      local flushed = core.spawn(peer.stdout.flush, peer.stdout)
      assert.is_nil(child:wait(0.05))
      flushed:wait()
      peer:finish { exit_code = 0 }
      assert.equal(0, child:wait().exit_code)
    end)

    it("whatever is queued, when it was given up", function()
      local child, peer = core.child { stdout = core.pipe and select(2, core.pipe()) }
      collect() -- the reader
      local other, its = core.child { stdin = core.PIPE, stdout = function() end }
      its:started()
      while pcall(core.deadline, 0.02, its.stdout.write, its.stdout, ("x"):rep(9999)) do turns(1) end
      other:close()
      its:finish { signal = KILL }
      assert.equal(137, other:wait().exit_code)
      raises("closed", its.stdout.write, its.stdout, "x")
      raises("closed", peer.stdout.write, peer.stdout, "x")
      peer:finish { exit_code = 0 }
      assert.equal(0, child:wait().exit_code)
    end)

    it("when what the caller reads himself is in the pipe", function()
      local child, peer = core.child { stdout = core.PIPE, stderr = core.PIPE }
      local _, stdout, stderr = child:streams()
      peer:started()
      peer.stdout:write "early "
      peer:finish { exit_code = 2 }
      assert.is_true(peer.over)
      assert.is_false(child.over)
      assert.is_nil(child:wait(0))
      assert.equal("early ", stdout:read "c")
      peer.stdout:write "late":flush()
      peer.stdout:close()
      assert.is_false(child.over)
      local waiter = core.spawn(child.wait, child)
      turns()
      peer.stderr:close()
      assert.is_true(child.over)
      assert.equal(2, waiter:wait().exit_code)
      assert.equal("late", stdout:read "a")
      assert.equal("", stderr:read "a")
    end)

    it("at once, when nobody wants it any more", function()
      local child, peer = core.child { stdout = core.PIPE, stderr = false }
      peer:finish { exit_code = 2 }
      assert.is_false(child.over)
      local waiter = core.spawn(child.wait, child)
      turns()
      child:close()
      assert.equal(2, waiter:wait().exit_code)
    end)

    it("as it is told, in a wait that anybody may repeat", function()
      local gate = {}
      local child = launch({}, gated(gate, printing("x", 6)))
      assert.is_nil(child:wait(0))
      assert.is_nil(child:wait(0.01))
      raises("timeout", core.deadline, 0.01, child.wait, child)
      local cancelled = core.spawn(child.wait, child)
      turns()
      cancelled:cancel()
      raises("cancelled", cancelled.wait, cancelled)
      raises("invalid", child.wait, child, -1)
      raises("invalid", child.wait, child, "x")
      gate.open()
      local result = child:wait(20)
      assert.equal(6, result.exit_code)
      assert.equal(result, child:wait(0))
    end)

    it("in somebody's private wait", function()
      local result = core.run(function()
        local results = {}
        table.sort({ 2, 1 }, function(a, b)
          local chunks = {}
          local child = launch({ stdin = "abc", stdout = function(chunk) chunks[#chunks + 1] = chunk end }, cat)
          results[#results + 1] = child:wait().exit_code .. table.concat(chunks)
          return a < b
        end)
        return results[1]
      end)
      assert.equal("0abc", result)
    end)
  end)

  describe("fails", function()
    it("to start, with the engine's error, each time the same", function()
      local child, peer = core.child { stdin = core.PIPE, stdout = core.PIPE }
      local stdin, stdout = child:streams()
      local problem = core.error("not_found", "/nonesuch: no such program")
      local waiter = core.spawn(pcall, child.started, child)
      turns()
      peer:fail(problem)
      assert.same({ false, problem }, { waiter:wait() })
      for _, method in ipairs { "started", "wait", "wait" } do
        local good, got = pcall(child[method], child)
        assert.is_false(good)
        assert.is_true(rawequal(problem, got))
      end
      assert.is_true(child.over)
      assert.equal("", stdout:read "a")
      raises("closed", stdin.write, stdin, "x")
    end)

    it("after it has started: wait alone tells", function()
      local child, peer = core.child { stdout = core.PIPE }
      local _, stdout = child:streams()
      peer:started(3)
      peer.stdout:write "some"
      local problem = core.error("transport", "the line is dead")
      peer:fail(problem)
      peer:fail(core.error("io", "again"))
      peer:finish { exit_code = 0 }
      child:started()
      assert.is_true(rawequal(problem, raises("transport", child.wait, child)))
      assert.equal(3, child.pid)
      assert.equal("some", stdout:read "a") -- what had come
    end)

    it("with whatever an engine has caught", function()
      local child, peer = core.child {}
      peer:fail "oops\nand more"
      local problem = raises("api", child.wait, child)
      assert.match("the engine has failed: oops", problem.message, 1, true)
      assert.equal("oops\nand more", problem.cause)
    end)

    it("so that a process knows it for its own", function()
      for kind, op in pairs { cancelled = false, state = false, timeout = "deadline" } do
        local process = popen(function() error(core.error(kind, "of the engine", { op = op or nil }), 0) end)
        fixture.until_true("the end", function() return not pcall(process.poll, process) end)
        raises(kind, process.poll, process)
        raises(kind, process.wait, process)
      end
    end)

    it("when the engine loses it", function()
      local child, peer = core.child { stdout = core.PIPE }
      local _, stdout = child:streams()
      peer:started()
      peer.stdout:write "x"
      peer = nil -- luacheck: ignore
      collect()
      assert.match("the engine has lost the process", raises("closed", child.wait, child).message, 1, true)
      assert.equal("x", stdout:read "a")
      child, peer = core.child {}
      local waiter = core.spawn(pcall, child.started, child)
      turns()
      peer:close()
      peer:close()
      local good, problem = waiter:wait()
      assert.is_false(good)
      assert.equal("closed", problem.kind)
      child, peer = core.child {}
      do local _ <close> = peer end
      raises("closed", child.wait, child)
      raises("closed", child.started, child)
    end)

    it("when the engine loses it, even though it was given up", function()
      local child = core.child {}
      child:close()
      local waiter = core.spawn(pcall, child.wait, child)
      turns()
      collect()
      local good, problem = waiter:wait()
      assert.is_false(good)
      assert.equal("closed", problem.kind)
    end)
  end)

  describe("is cut", function()
    local function limited()
      return core.error("resource", "the service keeps 10 MiB of each stream")
    end

    it("where the caller reads: after what there was, the error", function()
      local child, peer = core.child { stdout = core.PIPE, stderr = core.PIPE }
      local _, stdout, stderr = child:streams()
      local data = binary(200000)
      local writer = core.spawn(function()
        peer.stdout:write(data):flush()
        assert.is_true(peer:cut("stdout", limited()))
        peer.stderr:close()
        peer:finish { exit_code = 0, stdout_dropped = 1 }
      end)
      assert.is_true(data == stdout:read(#data))
      for _ = 1, 2 do
        assert.match("10 MiB of each stream", raises("resource", stdout.read, stdout, "a").message, 1, true)
      end
      writer:wait()
      assert.equal("", stderr:read "a")
      assert.equal(0, child:wait().exit_code)
      raises("closed", peer.stdout.write, peer.stdout, "x")
    end)

    it("under whoever reads just now", function()
      local child, peer = core.child { stdout = core.PIPE }
      local _, stdout = child:streams()
      local reader = core.spawn(pcall, stdout.read, stdout, "a")
      turns()
      peer.stdout:write "some"
      peer:cut("stdout", limited())
      local good, problem = reader:wait()
      assert.is_false(good)
      assert.equal("resource", problem.kind)
      assert.equal("some", stdout:read "c") -- it is not lost
      peer:finish { exit_code = 0 }
      child:wait()
    end)

    it("through a process, in communicate", function()
      local process = popen(function(peer)
        peer.stdout:write "some":flush()
        peer:cut("stdout", limited())
      end)
      raises("resource", process.communicate, process)
      assert.equal(0, process:wait())
    end)

    it("nowhere else", function()
      local child, peer = core.child { stdout = true, stderr = core.PIPE }
      assert.is_false(peer:cut("stdout", limited()))
      peer.stdout:write "x":flush()
      local _, _, stderr = child:streams()
      local other, its = core.child { stdin = stderr }
      assert.is_false(peer:cut("stderr", limited()))
      peer.stderr:close()
      peer:finish { exit_code = 0 }
      its:close()
      assert.equal("x", child:wait().stdout)
      raises("closed", other.wait, other)
    end)

    it("behind what is in the pipe; what is still queued goes", function()
      local child, peer = core.child { stdout = core.PIPE }
      local _, stdout = child:streams()
      while pcall(core.deadline, 0.02, peer.stdout.write, peer.stdout, ("x"):rep(9999)) do turns(1) end
      assert.is_true(peer:cut("stdout", limited()))
      local size = 0
      raises(limited().kind, function()
        while true do size = size + #stdout:read "c" end
      end)
      assert.is_true(size >= 4096, "read " .. size)
      peer:finish { exit_code = 0 }
      child:wait()
    end)
  end)

  describe("hears", function()
    it("of signals, in their order, each once", function()
      local child, peer = core.child {}
      child:signal(INT, "group")
      child:signal(TERM, "tree")
      child:signal(INT, "group")
      child:signal(INT, "tree")
      child:signal(0, "group") -- asks only whether it is there
      child:signal(64)
      assert.same({ "signal", INT, "group" }, { peer:next() })
      assert.same({ "signal", TERM, "tree" }, { peer:next() })
      assert.same({ "signal", INT, "tree" }, { peer:next() })
      assert.same({ "signal", 64, "group" }, { peer:next(0) })
      assert.same({}, { peer:next(0) })
      child:signal(INT)
      assert.same({ "signal", INT, "group" }, { peer:next(1) })
      peer:close()
    end)

    it("of as many signals as there are", function()
      local child, peer = core.child {}
      for _ = 1, 3 do
        for _, scope in ipairs { "group", "tree" } do
          for number = 1, 64 do child:signal(number, scope) end
        end
      end
      local seen = 0
      while peer:next(0) do seen = seen + 1 end
      assert.equal(128, seen)
      peer:close()
    end)

    it("no nonsense", function()
      local child, peer = core.child {}
      raises("invalid", child.signal, child, 65, "group")
      raises("invalid", child.signal, child, -1, "group")
      assert.is_false(pcall(child.signal, child, 9, "all"))
      assert.is_false(pcall(child.signal, child, "TERM"))
      raises("state", child.resize, child, 24, 80)
      assert.is_nil(peer:next(0))
      peer:close()
    end)

    it("while it waits for that", function()
      local child, peer = core.child {}
      local wait = core.service(peer.next, peer)
      turns()
      child:signal(INT)
      assert.same({ "signal", INT, "group" }, { wait:wait() })
      wait = core.service(peer.next, peer, 0.01)
      assert.same({}, { wait:wait() })
      wait = core.service(peer.next, peer)
      turns()
      wait:cancel()
      raises("cancelled", wait.wait, wait)
      wait = core.service(peer.next, peer)
      turns()
      peer:finish { exit_code = 0 }
      assert.same({}, { wait:wait() })
      assert.same({}, { peer:next() })
      child:signal(INT)
      child:close()
      assert.same({}, { peer:next() })
      assert.is_false(peer.given_up)
    end)

    it("that it is given up, once, in place of all else", function()
      local child, peer = core.child {}
      child:signal(INT)
      child:close()
      child:close()
      child:signal(TERM)
      assert.is_true(peer.given_up)
      assert.same({ "close" }, { peer:next() })
      assert.same({}, { peer:next(0) })
      assert.is_nil(child:wait(0))
      peer:finish { signal = KILL }
      assert.equal(137, child:wait().exit_code)
    end)

    it("that nobody has the child any more", function()
      local peer = select(2, core.child { stdout = function() end, stdin = function() end })
      local wait = core.service(peer.next, peer)
      turns()
      collect()
      assert.same({ "close" }, { wait:wait() })
      assert.is_true(peer.given_up)
      peer:started()
      peer.stdout:write(("x"):rep(100000)):flush() -- it runs dry
      peer:finish { exit_code = 0 }
    end)

    it("that nobody has the child any more, which holds what the functions hold", function()
      local token = setmetatable({}, { __mode = "v" })
      local peer
      do
        local big = {}
        token[1] = big
        local _
        _, peer = core.child { stdout = function() return big end }
      end
      collect()
      assert.is_nil(token[1])
      assert.equal("close", peer:next(0))
      peer:close()
    end)
  end)

  describe("under a process", function()
    everywhere("waits, polls, tells", function()
      local process = popen(function(peer)
        peer.stdout:write "out"
        peer.stderr:write "err"
        return 3
      end)
      assert.equal(77, process.pid)
      assert.equal(3, process:wait())
      assert.equal(3, process:poll())
      assert.equal("out", process.stdout:read "a")
      assert.equal("err", process.stderr:read "a")
      assert.is_false(process.ok)
      assert.equal("process 77 \"command\" exit 3", tostring(process))
    end)

    everywhere("talks", function()
      local data = binary(3 * MIB)
      local process = popen(cat, { stdin = bough.PIPE })
      local stdout, stderr = process:communicate(data)
      assert.is_true(data == stdout)
      assert.equal("", stderr)
      assert.equal(0, process:wait())
    end)

    everywhere("waits while much comes that nobody reads, all of it there to read after", function()
      local process = popen(function(peer)
        peer.stderr:write(("e"):rep(3 * MIB)):flush()
        peer.stdout:write(("o"):rep(3 * MIB))
      end)
      assert.equal(0, process:wait())
      assert.equal(("o"):rep(3 * MIB), process.stdout:read "a")
      assert.equal(("e"):rep(3 * MIB), process.stderr:read "a")
    end)

    it("communicates although the end is told before the last output", function()
      local process = popen(function(peer)
        local stdout, stderr = peer.stdout, peer.stderr
        core.service(function()
          core.sleep(0.02)
          stdout:write(("x"):rep(300000)):close()
        end)
        stderr:close()
        peer:finish { exit_code = 0 }
        while not stdout.closed do core.sleep(0.001) end
      end)
      assert.equal(("x"):rep(300000), (process:communicate()))
    end)

    everywhere("is killed and terminated", function()
      local process, state = popen(idle)
      process:send_signal "INT"
      process:kill()
      assert.equal(137, process:wait())
      assert.equal(9, process.signal)
      assert.same({ "signal 2 group", "signal 9 group" }, state.wishes)
      process:kill()
      process = popen(idle)
      process:terminate()
      assert.equal(143, process:wait())
      raises("state", function()
        local other <close> = popen(idle)
        other:resize(24, 80)
      end)
    end)

    everywhere("is given up at the end of its scope", function()
      local state
      do
        local process <close>, its = popen(idle, { stdin = bough.PIPE })
        state = its
        process.stdin:write "x"
      end
      assert.same({ "close" }, state.wishes)
      fixture.until_true("the end", function() return state.over end)
    end)

    it("is given up by the collector", function()
      local state = select(2, popen(idle, { stdin = bough.PIPE }))
      fixture.until_true("the end", function()
        collect()
        return state.over
      end)
      assert.same({ "close" }, state.wishes)
    end)

    it("calls functions although the caller reads another stream", function()
      local seen = {}
      local process = popen(function(peer)
        peer.stderr:write(("e\n"):rep(100000)):flush()
        peer.stdout:write "done\n"
      end, { stderr = function(line) seen[#seen + 1] = line end, text = "lines" })
      assert.equal("done", process.stdout:read())
      assert.equal(0, process:wait())
      assert.equal(100000, #seen)
    end)

    it("that does not start", function()
      local place = {}
      function place:exec(spec) -- luacheck: ignore 212
        local child, peer = core.child(spec)
        core.service(function() peer:fail(core.error("not_found", "no such program")) end)
        return child
      end
      local spec, policy = options.spec({ "x" }, nil, { op = "popen", live = true })
      local problem = raises("not_found", live.start, place, spec, policy, "popen")
      assert.equal("popen: no such program", tostring(problem))
    end)

    it("is closed as io.popen's files are", function()
      local process = popen(function(peer) peer.stdin:read "a" end, { stdin = bough.PIPE })
      process.stdin:write "x"
      assert.same({ true, "exit", 0 }, { process:close() })
      process = popen(function() return { signal = 15 } end)
      assert.same({ nil, "signal", 15 }, { process:close() })
    end)

    it("is checked", function()
      local process = popen(printing("why\n", 2, "stderr"), { check = true })
      local problem = raises("exit", process.wait, process)
      assert.match("why", problem.message, 1, true)
      assert.equal(2, problem.result.exit_code)
    end)
  end)

  describe("in a pipeline", function()
    local function upper(peer)
      each_chunk(peer.stdin, function(chunk) peer.stdout:write(chunk:upper()) end)
    end

    it("with others of its kind", function()
      local data = binary(2 * MIB)
      local result = {}
      local outcome = (data | cmd(cat) | cmd(cat) | cmd(upper)):to(function(chunk) result[#result + 1] = chunk end)
      assert.is_true(outcome.ok)
      assert.is_true(data:upper() == table.concat(result))
    end)

    it("between commands of this machine", function()
      local line = bough.host "seq 100000" | cmd(cat) | bough.host "tail -n 1" | cmd(upper)
      assert.equal(100000, line:read "n")
      line = cmd(printing "one\ntwo\n") | bough.host "sort -r" | cmd(cat)
      assert.equal("two\none\n", line:read())
    end)

    it("with a function", function()
      local line = cmd(printing "a\nb\n") | function(input, output)
        for text in input:lines() do output:write("<", text, ">") end
      end | cmd(upper)
      assert.equal("<A><B>", line:read())
    end)

    it("whose end wants no more", function()
      local function endless(peer)
        while true do peer.stdout:write(("y\n"):rep(1000)) end
      end
      assert.equal("y", (cmd(endless) | bough.host "head -n 1"):read "l")
      assert.equal("y", (cmd(endless) | cmd(cat) | bough.host "head -n 1"):read "l")
      assert.equal("y", (cmd(endless) | cmd(function(peer)
        peer.stdout:write(peer.stdin:read "L")
      end)):read "l")
    end)

    it("one of which fails", function()
      local result = (cmd(printing("x", 4)) | cmd(cat)):with { pipefail = true }:wait()
      assert.equal(4, result.exit_code)
      local line = cmd(function() error(core.error("transport", "the line is dead"), 0) end) | bough.host "cat"
      raises("transport", line.wait, line)
    end)

    it("that is stopped by its time limit", function()
      local result = (cmd(idle) | bough.host "cat"):with { timeout = 0.05 }:wait()
      assert.is_true(result.timed_out)
    end)

    it("with a host's process at either side, handed over", function()
      local first = bough.host({ "printf", "%s", "text" }):start()
      local child = launch({ stdin = first.stages[1].stdout }, upper)
      assert.equal("TEXT", child:wait().stdout)
      first:wait()
      local child2 = launch({ stdout = core.PIPE }, printing "more")
      local _, stdout = child2:streams()
      local second = (stdout | bough.host "cat"):start()
      assert.equal("more", second:read "a")
      second:wait()
      child2:wait()
    end)
  end)

  describe("in a Lua of its own", function()
    -- Runs a script; its output, and how it ended.
    local function script(text, redirect, prefix)
      local path = scratch.dir "script" .. "/script.lua"
      local file = assert(io.open(path, "w"))
      file:write(([[package.path, package.cpath = %q, %q
        local core = require "bough.core"
        local function serve(spec, body)
          local child, peer = core.child(spec)
          core.service(function()
            local peer <close> = peer
            peer:started()
            local code = body(peer)
            if peer.stdout then peer.stdout:flush():close() end
            if peer.stderr then peer.stderr:flush():close() end
            peer:finish { exit_code = code or 0 }
          end)
          return child
        end
        local function cat(peer)
          while peer.stdin do
            local chunk = peer.stdin:read "c"
            if not chunk then return end
            peer.stdout:write(chunk)
          end
        end
        ]]):format(package.path, package.cpath), text)
      file:close()
      local pipe = assert(io.popen(("%s%s -W %s 2>&1 %s"):format(prefix or "", arg and arg[-1] or "lua5.4", path,
        redirect or "")))
      local output = pipe:read "a"
      return output, pipe:close()
    end

    it("inherits what the host has", function()
      local input = scratch.file "from the host\n"
      local output, good = script([[
        io.write "first\n"
        io.stdout:flush()
        local child = serve({ stdin = core.INHERIT, stdout = core.INHERIT, stderr = core.INHERIT }, function(peer)
          cat(peer)
          peer.stderr:write "error\n"
          return 3
        end)
        local result = child:wait()
        print(result.exit_code, result.stdout)
      ]], "<" .. scratch.quote(input))
      assert.equal("first\nfrom the host\nerror\n3\tnil\n", output)
      assert.is_true(good)
    end)

    it("inherits a pipe without making it non-blocking", function()
      local output, good = script([[
        local child = serve({ stdin = core.INHERIT, stdout = core.INHERIT }, cat)
        print(child:wait().exit_code)
        for fd = 0, 1 do
          local info = assert(io.open("/proc/self/fdinfo/" .. fd)):read "a"
          print(tonumber(info:match "flags:%s*(%d+)", 8) & 2048)
        end
      ]], "< /dev/stdin | cat")
      assert.is_true(good)
      assert.match("0\n0\n0\n$", output)
    end)

    it("goes without what the host has closed", function()
      local output, good = script([[
        local child = serve({ stdin = core.INHERIT, stdout = core.INHERIT, stderr = true }, function(peer)
          if peer.stdout then peer.stdout:write "lost" end
          peer.stderr:write(peer.stdin and peer.stdin:read "a" or "")
        end)
        local result = child:wait()
        local file = assert(io.open("/dev/stderr", "w"))
        file:write(result.exit_code, " ", result.stderr, "\n")
      ]], "<&- 3>&1 >&- 2>&3")
      assert.equal("0 \n", output)
      assert.is_true(good)
    end)

    it("ends with the state, at any moment", function()
      for _, ending in ipairs {
        "", "os.exit(true, true)", "child:close()", "core.step(0)", "child:wait(0.01) os.exit(true, true)",
        "child = nil collectgarbage()", "core.spawn(child.wait, child) core.step(0) os.exit(true, true)",
        "coroutine.wrap(function() child:wait(0) end)()",
      } do
        local output, good = script([[
          local child = serve({ stdin = core.PIPE, stdout = function() end, stderr = core.PIPE }, function(peer)
            core.service(peer.next, peer)
            peer.stderr:write(("x"):rep(1000000))
            core.sleep(60)
          end)
          local stdin, _, stderr = child:streams()
          stdin:write(("x"):rep(100))
        ]] .. ending)
        assert.equal("", output)
        assert.is_true(good, ending)
      end
    end)

    it("waits for nothing that can never come", function()
      local output, good = script([[
        local child, peer = core.child { stdout = false, stderr = false }
        core.service(function() while peer:next() do end end)
        local _, problem = pcall(child.wait, child)
        print(problem.kind)
      ]])
      assert.equal("state\n", output)
      assert.is_true(good)
    end)

    it("needs descriptors, and leaves none when there are too few", function()
      local output, good = script([[
        local core, kinds, made = require "bough.core", {}, 0
        local function attempt(spec)
          local good, child = pcall(core.child, spec)
          if good then made = made + 1 else kinds[child.kind] = true end
          collectgarbage()
          collectgarbage()
          core.step(0)
        end
        local files = {}
        repeat files[#files + 1] = io.open "/dev/null" until #files == 60 or not io.open "/dev/null"
        for _ = 1, 8 do
          for _ = 1, 20 do
            attempt { stdin = core.PIPE, stdout = core.PIPE, stderr = core.PIPE }
            attempt { stdin = function() end, stdout = function() end }
            attempt { stdin = "text", stderr = core.STDOUT }
          end
          if made == 0 and not next(kinds) then break end
          if #files > 0 then table.remove(files):close() end
        end
        print(next(kinds), next(kinds, (next(kinds))), made > 0)
      ]], nil, "ulimit -n 40; ")
      assert.equal("resource\tnil\ttrue\n", output)
      assert.is_true(good)
    end)

    it("is attached to", function()
      local output, good = script([[
        local process = core.process(serve({ stdin = core.PIPE, stdout = core.PIPE, stderr = core.PIPE }, cat), {})
        local child = serve({ stdin = core.PIPE, stdout = core.PIPE, stderr = core.PIPE }, cat)
        local stdin, stdout, stderr = child:streams()
        local process = core.process(child, { stdin = stdin, stdout = stdout, stderr = stderr, command = "cat" })
        print(process:attach())
      ]], "< /etc/hostname")
      assert.equal((content "/etc/hostname" or "") .. "0\n", output)
      assert.is_true(good)
    end)
  end)

  it("stands a crowd, in which everybody does as he likes", function()
    local random = math.random
    local over = 0
    local function one(i)
      local body = ({
        cat, printing(binary(random(300000))), idle, count,
        function(peer) peer:fail(core.error("io", "x")) end, function() error "bad" end,
        function(peer) peer:close() end,
      })[random(7)]
      local sinks = { true, false, core.PIPE, function() core.sleep(0) end }
      local spec = {
        stdin = ({
          ("x"):rep(random(200000)), core.PIPE, function() return random(4) > 1 and "x" or nil end,
        })[random(3)],
        stdout = sinks[random(4)] or nil, stderr = random(2) == 1 and core.STDOUT or sinks[random(4)] or nil,
      }
      if body == count and spec.stdout == false then spec.stdout = nil end
      local child, state = launch(spec, body)
      local stdin, stdout, stderr = child:streams()
      if stdin and random(2) == 1 then stdin:write(("y"):rep(random(30000))) end
      if stdin and random(4) > 1 then stdin:close() end
      if stdout and random(3) == 1 then stdout:close() end
      if stderr and random(3) == 1 then stderr:close() end
      if random(3) == 1 then child:signal(({ INT, TERM, KILL })[random(3)], "tree") end
      pcall(child.wait, child, random(3) / 1000)
      if random(3) == 1 then return end -- left to the collector
      if stdout and random(2) == 1 then pcall(core.deadline, 0.01, stdout.read, stdout, "a") end
      child:close()
      pcall(child.wait, child)
      assert.is_true(child.over)
      if i % 10 == 0 then collectgarbage() end
      return state
    end
    local tasks = {}
    for i = 1, 200 do
      tasks[i] = core.spawn(function()
        for _ = 1, 2 do one(i) end
        over = over + 1
      end)
      if i % 7 == 0 then tasks[i]:cancel() end
      turns(1)
    end
    for _, task in ipairs(tasks) do pcall(task.wait, task) end
    assert.is_true(over > 150)
    fixture.until_true("the end of all", function()
      collect()
      return not core.step(0)
    end)
  end)
end)
