--- What the host process must not notice: it has signal handlers, children and descriptors of its own.
--
-- Each test runs a host in a process of its own, which reports on its standard output.

local lfs = require "lfs"

local fixture = require "spec.engine.fixture"
local scratch = require "spec.support.scratch"

-- In front of each host: how to look at oneself.
local PRELUDE = [[
local lfs = require "lfs"
local system = require "system"

local function read_file(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

-- The descriptors: number -> what it is; without the one that reads the list.
local function descriptors()
  local set, numbers = {}, {}
  for name in lfs.dir "/proc/self/fd" do numbers[#numbers + 1] = tonumber(name) end
  for _, number in ipairs(numbers) do
    set[number] = lfs.symlinkattributes("/proc/self/fd/" .. number, "target")
  end
  return set
end

local function count(set)
  local n = 0
  for _ in pairs(set) do n = n + 1 end
  return n
end

local function children()
  local found = {}
  local own = read_file "/proc/self/stat":match "^%d+"
  for name in lfs.dir "/proc" do
    local file = name:find "^%d+$" and io.open("/proc/" .. name .. "/stat")
    if file then
      local parent = (file:read "a" or ""):match "%) %a (%d+)"
      file:close()
      if parent == own then found[#found + 1] = name end
    end
  end
  return found
end

local function must(condition, ...)
  if not condition then
    io.stderr:write(string.format(...), "\n")
    os.exit(9)
  end
end
]]

local function host(script, ...)
  return fixture.run_lua(PRELUDE .. script, ...)
end

describe("the host", function()
  local home

  setup(function()
    home = scratch.store()
    host([[
      local box <close> = require "bough".open(arg[1])
      box.images:use "busybox"
    ]], home)
  end)

  it("keeps its signal handlers and its mask", function()
    host([[
      local function signals()
        local status = read_file "/proc/self/status"
        local sets = {}
        for name, hex in status:gmatch "(Sig[BIC][lgt][knt]):%s*(%x+)" do
          -- but 32 and 33: the C library's own, taken when the first thread starts
          sets[#sets + 1] = ("%s %x "):format(name, tonumber(hex, 16) & ~(3 << 31))
        end
        assert(#sets == 3)
        return table.concat(sets)
      end
      -- lua installs one of its own for the time of a chunk: what counts is what changes
      local before = signals()
      local bough = require "bough"
      must(signals() == before, "require: %s -> %s", before, signals())
      local box = bough.open(arg[1])
      must(signals() == before, "open: %s -> %s", before, signals())
      local base = box.images:use "busybox"
      base:run { "true", stdin = function() end, stdout = function() end }
      base:run { "head", "-c1", stdin = function() return ("x"):rep(100000) end }
      base:run { "sleep", "60", timeout = 0.1 }
      bough.run(function() base:run "true" end)
      bough.step(0)
      must(signals() == before, "runs: %s -> %s", before, signals())
      box:close()
      must(signals() == before, "close: %s -> %s", before, signals())
      must(read_file "/proc/self/status":match "SigPnd:%s*(%x+)" == "0000000000000000", "a signal is left")
    ]], home)
  end)

  it("sees no children of ours, and reaps its own", function()
    host([[
      local bough = require "bough"
      local box = bough.open(arg[1])
      local base = box.images:use "busybox"
      must(#children() == 0, "after open: %s", table.concat(children(), " "))
      local runs = {}
      for i = 1, 3 do runs[i] = base:start "sleep 0.2; exit 5" end
      must(#children() == 0, "in a run: %s", table.concat(children(), " "))
      local ok, how, code = os.execute "exit 3"
      must(not ok and how == "exit" and code == 3, "a child of the host: %s %s", how, code)
      local pipe = io.popen("sleep 0.3; exit 4")
      for _, run in ipairs(runs) do must(run:wait().exit_code == 5, "a run: %d", run.exit_code) end
      ok, how, code = pipe:close()
      must(not ok and how == "exit" and code == 4, "a pipe of the host: %s %s", how, code)
      box:close()
      must(#children() == 0, "after close: %s", table.concat(children(), " "))
    ]], home)
  end)

  it("has its descriptors back after close, none is inheritable meanwhile", function()
    host([[
      local bough = require "bough"
      bough.step(0)
      local before = descriptors()
      for _ = 1, 3 do
        local box = bough.open(arg[1])
        local base = box.images:use "busybox"
        local path = os.tmpname()
        base:run { "cat", stdin = "x", stdout = path }
        os.remove(path)
        base:run { "cat", stdin = function() end, stderr = function() end }
        pcall(base.run, base, { "no-such-program" })
        pcall(base.run, base, { "true", stdout = "/no/where", stderr = "/no/where" })
        pcall(base.run, base, { "cat", stdin = bough.file "/no/where" })
        pcall(base.read, base, "/no/where")
        base:ls "/"
        base:start "sleep 60":close()
        base:start { "sleep", "60", stdout = function() end }
        local inherited = {}
        for fd in pairs(descriptors()) do
          local flags = tonumber(read_file("/proc/self/fdinfo/" .. fd):match "flags:%s*(%d+)", 8)
          if fd > 2 and not before[fd] and flags & tonumber("2000000", 8) == 0 then
            inherited[#inherited + 1] = fd
          end
        end
        must(#inherited == 0, "inheritable: %s", table.concat(inherited, " "))
        box:close()
        collectgarbage()
        collectgarbage()
        for fd, target in pairs(descriptors()) do
          must(before[fd] == target, "left open: %d -> %s", fd, target)
        end
      end
      must(count(descriptors()) == count(before), "%d -> %d", count(before), count(descriptors()))
    ]], home)
  end)

  it("may have closed its standard streams, and none of ours takes their place", function()
    local report = scratch.dir() .. "/report"
    scratch.sh("timeout -k 5 120 " .. fixture.lua_command(PRELUDE .. [[
      local function check()
        local bough = require "bough"
        local box = bough.open(arg[1])
        local base = box.images:use "busybox"
        local image = base:run { shell = "cat; echo err >&2", stdin = "in\n" }
        assert(image.stdout == "in\n" and image.stderr == "err\n", "strings")
        local got
        image = base:run {
          "cat", stdin = coroutine.wrap(function() coroutine.yield "a" coroutine.yield "b" end),
          stdout = function(chunk) got = (got or "") .. chunk end,
        }
        assert(got == "ab", "functions")
        image = base:run { shell = "echo x; echo y >&2; cat", stdout = bough.INHERIT, stderr = bough.INHERIT }
        assert(image.exit_code == 0 or image.exit_code == 1, "inherited")
        for fd = 0, 2 do
          assert(descriptors()[fd] == "/dev/null", ("descriptor %d -> %s"):format(fd, descriptors()[fd]))
        end
        print "which goes nowhere"
        box:close()
      end
      local ok, why = xpcall(check, debug.traceback)
      local report = assert(io.open(arg[2], "w"))
      report:write(ok and "fine" or tostring(why))
      report:close()
    ]], home, report) .. " <&- >&- 2>&-")
    assert.equal("fine", fixture.read_file(report))
  end)

  it("keeps its environment, directory, umask and standard streams", function()
    local dir = scratch.dir()
    -- the paths of this process may be relative
    local function absolute(path)
      return scratch.quote((path:gsub("[^;]+", function(one)
        return one:sub(1, 1) == "/" and one or lfs.currentdir() .. "/" .. one
      end)))
    end
    local output = scratch.sh(("cd %s && umask 027 && LUA_PATH=%s LUA_CPATH=%s SECRET=x %s")
      :format(scratch.quote(dir), absolute(package.path), absolute(package.cpath),
        fixture.lua_command(PRELUDE .. [[
          local function state()
            local pipe <close> = io.popen("env | sort | grep -v ^_=; pwd; umask; ulimit -a;"
              .. "cat /proc/self/oom_score_adj")
            return pipe:read "a" .. lfs.currentdir() .. read_file "/proc/self/comm"
          end
          local before = state()
          local bough = require "bough"
          local box = bough.open(arg[1])
          local base = box.images:use "busybox"
          local made = "made"
          assert(base:run { shell = "env; umask; pwd", stdout = made })
          assert(not read_file(made):find "SECRET")
          must(state() == before, "it was\n%s\nand is\n%s", before, state())
          box:close()
          must(state() == before, "it was\n%s\nand is\n%s", before, state())
        ]], home)))
    assert.equal("", output)
  end)

  describe("leaves nothing running", function()
    -- Runs a host that says "ready" while commands run, and looks at what is left after its end.
    local function ends(ending, expected)
      local mark = fixture.long_time()
      local command = fixture.lua_command(PRELUDE .. ([[
        local bough = require "bough"
        local box = bough.open(arg[1])
        local base = box.images:use "busybox"
        local ready = 0
        local function sink(line) if line == "ready" then ready = ready + 1 end end
        for _ = 1, 3 do
          bough.spawn(function()
            base:run { shell = "echo ready; (sleep MARK &); sleep MARK", stdout = sink, text = "lines" }
          end)
        end
        local started = base:start "sleep MARK"
        while ready < 3 do bough.step(1) end
        io.write(box:info().keeper_pid, "\n")
        io.flush()
        ENDING
      ]]):gsub("MARK", mark):gsub("ENDING", (ending:gsub("%%", "%%%%"))), home)
      local output = scratch.sh(("timeout -k 5 120 %s; echo status $?"):format(command))
      local keeper = assert(output:match "^(%d+)\n", output)
      assert.match(expected, output)
      fixture.gone("sleep " .. mark)
      fixture.until_true("the keeper's end", function() return not fixture.alive(keeper) end)
      host([[
        local box <close> = require "bough".open(arg[1])
        must(box.images:use "busybox":run "echo x".stdout == "x\n", "the store is damaged")
      ]], home)
    end

    it("when the script ends", function() ends("", "status 0") end)
    it("when it ends by an error", function() ends("error 'enough'", "enough.*status 1") end)
    it("when the state is closed by os.exit", function() ends("os.exit(true, true)", "status 0") end)
    it("when os.exit does not close the state", function() ends("os.exit(false, false)", "status 1") end)
    it("when a task raises during the run", function()
      ends("bough.run(function() error 'in a task' end)", "in a task.*status 1")
    end)
    it("when the engine is closed", function() ends("box:close() os.exit(7)", "status 7") end)
    it("when it is killed", function()
      ends("os.execute('kill -9 ' .. read_file '/proc/self/stat':match '^%d+')", "status 137")
    end)
  end)

  it("gets a clear error when it is short of descriptors, and loses none", function()
    local output = scratch.sh("ulimit -n 200; timeout -k 5 120 " .. fixture.lua_command(PRELUDE .. [[
      local bough = require "bough"
      local box = bough.open(arg[1])
      local base = box.images:use "busybox"
      local hog = {} -- as many as there are: /proc/self/fd cannot be listed now
      while true do
        local file = io.open "/dev/null"
        if not file then break end
        hog[#hog + 1] = file
      end
      local succeeded, failed = 0, 0
      local ways = {
        run = function() return base:run { "cat", stdin = "x" } end,
        functions = function() return base:run { "cat", stdin = function() end, stdout = function() end } end,
        read = function() return base:read "/etc/passwd" end,
        ls = function() return base:ls "/" end,
        -- another store: of one that is open SQLite keeps a descriptor until all are closed
        open = function() bough.open(arg[2]):close() end,
      }
      for free = 0, 24 do
        for name, way in pairs(ways) do
          local ok, problem = pcall(way)
          if ok then
            succeeded = succeeded + 1
          else
            failed = failed + 1
            must(bough.is_error(problem), "%s with %d: a plain error: %s", name, free, tostring(problem))
            must(problem.kind == "resource", "%s with %d: kind %s: %s", name, free, problem.kind,
              tostring(problem))
            must(tostring(problem):lower():find "descriptor" or tostring(problem):lower():find "open files",
              "%s with %d: %s", name, free, tostring(problem))
          end
          -- as many as there were can be opened again
          collectgarbage()
          collectgarbage()
          local again = {}
          local give_up = system.monotime() + 5
          while #again < free and system.monotime() < give_up do
            local file = io.open "/dev/null"
            if file then again[#again + 1] = file else bough.step(0.01) end
          end
          must(#again == free, "%s: %d were free, %d are", name, free, #again)
          for _, file in ipairs(again) do file:close() end
        end
        table.remove(hog):close()
      end
      for _, file in ipairs(hog) do file:close() end
      must(base:run "echo x".stdout == "x\n", "the engine does not work any more")
      print(succeeded > 0 and failed > 0 and "both" or "odd", succeeded, failed)
      box:close()
    ]], home, scratch.store()))
    assert.match("^both", output)
  end)

  it("gets Ctrl-C itself; sandboxes and keeper, in the same terminal, do not", function()
    local mark = fixture.long_time()
    local command = fixture.lua_command(PRELUDE .. ([[
      local bough = require "bough"
      local box = bough.open(arg[1])
      local base = box.images:use "busybox"
      local ready
      local run = base:start {
        shell = "echo ready; sleep MARK", stdout = function(line) ready = line == "ready" end, text = "lines",
      }
      bough.spawn(pcall, run.wait, run)
      while not ready do bough.step(1) end
      local own = read_file "/proc/self/stat":match "^%d+"
      local ok, why = pcall(function()
        io.popen("kill -INT -" .. own) -- os.execute would ignore it meanwhile
        while true do bough.step(0.01) end
      end)
      must(not ok and tostring(why):find "interrupted", "not interrupted: %s", tostring(why))
      must(run.state == "executing", "the run is %s", run.state)
      must(base:run "echo x".stdout == "x\n", "the engine is gone")
      box:close()
      print "fine"
    ]]):gsub("MARK", mark), home)
    -- a group of its own, with Ctrl-C as it is for a program in a terminal
    assert.equal("fine\n", scratch.sh("timeout -k 5 120 setsid --wait " .. command))
    fixture.gone("sleep " .. mark)
  end)

  -- Live processes: the same host, with a sandbox that hosts several and plain commands of the machine.
  local LIVE = [[
    local bough = require "bough"
    local box, base, instance
    local function open()
      box = bough.open(arg[1])
      base = box.images:use "busybox"
      instance = base:boot()
    end
    -- All that live processes do, once.
    local function everything()
      local sorter <close> = instance:exec { "sort", stdin = bough.PIPE }
      sorter.stdin:write("b\na\n"):close()
      assert(sorter.stdout:read "a" == "a\nb\n" and sorter:wait() == 0)
      local terminal <close> = instance:exec { shell = "read x; echo got $x", pty = true }
      terminal.stdin:write "it\n"
      assert(terminal.stdout:read "a":find "got it")
      local deaf = instance:exec { shell = "exec <&-; echo deaf; sleep 900", stdin = bough.PIPE }
      assert(deaf.stdout:read() == "deaf")
      local ok, problem
      local give_up = system.monotime() + 20 -- its end may be closed a moment later in who has started it
      repeat ok, problem = pcall(deaf.stdin.write, deaf.stdin, "x") until not ok or system.monotime() > give_up
      assert(not ok and problem.kind == "closed", tostring(problem))
      deaf:kill()
      assert(deaf:wait() == 137)
      local late <close> = instance:exec { "sleep", "900", timeout = 0.05 }
      assert(late:wait() == 137 and late.timed_out)
      assert(not pcall(instance.exec, instance, { "no-such-program" }))
      assert(not pcall(bough.deadline, 0.02, function()
        local given_up <close> = instance:exec { "sleep", "900" }
        given_up:wait()
      end))
      local session <close> = base:session()
      assert(session:popen("echo x >/x"):wait() == 0 and session:read "/x" == "x\n")
      assert((bough.host "echo plain" | instance:cmd "tr a-z A-Z"):read "a" == "PLAIN\n")
      assert(instance:commit():read "/etc/passwd")
    end
  ]]

  local function live_host(script, ...) return host(LIVE .. script, ...) end

  -- Where the module host_native is, compiled.
  local function native()
    local dir = scratch.dir()
    scratch.sh(("%s -O1 -shared -fPIC -pthread -o %s/host_native.so spec/support/host_native.c")
      :format(scratch.quote(os.getenv "CC" or "cc"), scratch.quote(dir)))
    return dir
  end

  it("keeps its signal handlers, its mask and SIGPIPE's default with live processes", function()
    live_host([[
      local function signals()
        local status = read_file "/proc/self/status"
        local sets = {}
        for name, hex in status:gmatch "(Sig[BIC][lgt][knt]):%s*(%x+)" do
          sets[#sets + 1] = ("%s %x "):format(name, tonumber(hex, 16) & ~(3 << 31)) -- as above
        end
        assert(#sets == 3)
        return table.concat(sets)
      end
      local before = signals()
      must(not before:find "SigIgn [^0]" and not before:find "SigBlk [^0]", "it begins with %s", before)
      open()
      must(signals() == before, "boot: %s -> %s", before, signals())
      everything()
      bough.run(everything)
      must(signals() == before, "processes: %s -> %s", before, signals())
      local process = instance:exec { "sleep", "900" }
      must(signals() == before, "while one runs: %s -> %s", before, signals())
      box:close()
      must(signals() == before, "close: %s -> %s", before, signals())
      must(read_file "/proc/self/status":match "SigPnd:%s*(%x+)" == "0000000000000000", "a signal is left")
      must(process.state == nil and pcall(process.kill, process), "the process object is unusable")
    ]], home)
  end)

  it("hears no SIGCHLD of ours, and has its own children, with live processes", function()
    live_host([[
      package.cpath = arg[2] .. "/?.so;" .. package.cpath
      local own = require "host_native"
      own.watch()
      local pid, fd = own.begin()
      open()
      everything()
      local process <close> = instance:exec { "sleep", "900" }
      local found = table.concat(children(), " ")
      must(found == tostring(pid), "children: %s, its own is %d", found, pid)
      must(own.count() == 0, "it heard %d SIGCHLD of ours", own.count())
      must(own.finish(pid, fd) == 7, "its own child was reaped by somebody else")
      must(own.count() == 1, "it heard %d SIGCHLD, of one child", own.count())
      local ok, how, code = os.execute "exit 3"
      must(not ok and how == "exit" and code == 3, "os.execute: %s %s", how, code)
      everything()
      box:close()
      must(#children() == 0, "after close: %s", table.concat(children(), " "))
    ]], home, native())
  end)

  it("has its descriptors back after live processes, none is inheritable meanwhile", function()
    live_host([[
      bough.step(0)
      open()
      everything()
      instance, base = nil, nil
      box:close()
      collectgarbage()
      collectgarbage()
      local before = descriptors()
      for _ = 1, 3 do
        open()
        local one = instance:exec { "cat", stdin = bough.PIPE }
        local two = instance:exec { "sh", pty = true }
        local three = base:popen { "cat", stdin = bough.PIPE }
        local four = bough.host { "cat", stdin = bough.PIPE }:start()
        local reader, writer = bough.pipe()
        local inherited = {}
        for fd in pairs(descriptors()) do
          local flags = tonumber(read_file("/proc/self/fdinfo/" .. fd):match "flags:%s*(%d+)", 8)
          if fd > 2 and not before[fd] and flags & tonumber("2000000", 8) == 0 then
            inherited[#inherited + 1] = fd
          end
        end
        must(#inherited == 0, "inheritable: %s", table.concat(inherited, " "))
        everything()
        bough.run(everything)
        do local _ <close> = four end
        reader:close()
        writer:close()
        box:close()
        for _, process in ipairs { one, two, three } do
          pcall(process.wait, process)
          for _, name in ipairs { "stdin", "stdout", "stderr" } do
            if process[name] then process[name]:close() end
          end
        end
        instance, base, one, two, three, four = nil, nil, nil, nil, nil, nil
        collectgarbage()
        collectgarbage()
        bough.step(0)
        for fd, target in pairs(descriptors()) do
          must(before[fd] == target, "left open: %d -> %s", fd, target)
        end
      end
      must(count(descriptors()) == count(before), "%d -> %d", count(before), count(descriptors()))
    ]], home)
  end)

  it("may have closed its standard streams, and no stream of a live process takes their place", function()
    for _, closed in ipairs { "<&- >&- 2>&-", "<&-", ">&- 2>&-" } do
      local report = scratch.dir() .. "/report"
      scratch.sh("timeout -k 5 120 " .. fixture.lua_command(PRELUDE .. LIVE .. [[
        local standard = {}
        local function check()
          open()
          everything()
          local inherits = instance:exec { shell = "cat; echo out; echo err >&2; exit 3", stdin = bough.INHERIT,
            stdout = bough.INHERIT, stderr = bough.INHERIT }
          assert(inherits:wait() == 3, tostring(inherits))
          local plain = bough.host { shell = "cat; echo out; echo err >&2; exit 4", stdin = bough.INHERIT,
            stdout = bough.INHERIT, stderr = bough.INHERIT }:start()
          assert(plain:wait().exit_code == 4, tostring(plain))
          local process <close> = instance:exec { "cat", stdin = bough.PIPE }
          local now = descriptors()
          for fd = 0, 2 do
            assert(now[fd] == standard[fd] or not standard[fd] and now[fd] == "/dev/null",
              ("descriptor %d: %s -> %s"):format(fd, tostring(standard[fd]), tostring(now[fd])))
          end
          print "which goes nowhere"
          box:close()
        end
        for fd = 0, 2 do standard[fd] = lfs.symlinkattributes("/proc/self/fd/" .. fd, "target") end
        local ok, why = xpcall(check, debug.traceback)
        local report = assert(io.open(arg[2], "w"))
        report:write(ok and "fine" or tostring(why))
        report:close()
      ]], home, report) .. " </dev/null " .. closed)
      assert.equal("fine", fixture.read_file(report), closed)
    end
  end)

  it("gets one clear error from popen when its descriptors are used up, and loses none", function()
    local output = scratch.sh("ulimit -n 200; timeout -k 5 120 " .. fixture.lua_command(PRELUDE .. LIVE .. [[
      open()
      everything()
      local live <close> = instance:exec { "cat", stdin = bough.PIPE }
      local hog = {}
      while true do
        local file = io.open "/dev/null"
        if not file then break end
        hog[#hog + 1] = file
      end
      local succeeded, failed = 0, 0
      local ways = {
        exec = function() return instance:exec { "cat", stdin = bough.PIPE } end,
        terminal = function() return instance:exec { "true", pty = true } end,
        popen = function() return base:popen { "true", stdin = bough.PIPE } end,
        captured = function() return instance:exec { "echo", "x", stdout = true, stderr = true } end,
        host = function() return bough.host { "true", stdin = bough.PIPE }:start() end,
        boot = function() return base:boot() end,
        commit = function() return instance:commit() end,
        pipe = function() return bough.pipe() end,
      }
      for free = 0, 20 do
        for name, way in pairs(ways) do
          local all = table.pack(pcall(way))
          if all[1] then
            succeeded = succeeded + 1
            for i = 2, all.n do
              if name ~= "commit" then do local _ <close> = all[i] end end
            end
          else
            failed = failed + 1
            local problem = all[2]
            must(bough.is_error(problem), "%s with %d: a plain error: %s", name, free, tostring(problem))
            must(problem.kind == "resource", "%s with %d: kind %s: %s", name, free, problem.kind, tostring(problem))
            must(tostring(problem):lower():find "descriptor" or tostring(problem):lower():find "open files",
              "%s with %d: %s", name, free, tostring(problem))
          end
          all = nil
          local again = {}
          local give_up = system.monotime() + 5
          while #again < free and system.monotime() < give_up do
            collectgarbage()
            local file = io.open "/dev/null"
            if file then again[#again + 1] = file else bough.step(0.01) end
          end
          must(#again == free, "%s: %d were free, %d are", name, free, #again)
          for _, file in ipairs(again) do file:close() end
          live.stdin:write "alive\n"
          must(live.stdout:read() == "alive", "another process does not go on")
        end
        table.remove(hog):close()
      end
      for _, file in ipairs(hog) do file:close() end
      everything()
      print(succeeded > 0 and failed > 0 and "both" or "odd", succeeded, failed)
      box:close()
    ]], home))
    assert.match("^both", output)
  end)

  it("may have threads that take signals and start children", function()
    live_host([[
      package.cpath = arg[2] .. "/?.so;" .. package.cpath
      local threads = require "host_native"
      threads.begin_threads()
      open()
      for _ = 1, 5 do everything() end
      bough.run(function()
        local list = {}
        for i = 1, 20 do
          list[i] = function() return instance:exec("exit " .. i):wait() end
        end
        for i, code in ipairs(bough.all(list)) do must(code == i, "%d ended with %d", i, code) end
      end)
      box:close()
      local good, bad = threads.finish_threads()
      must(good > 0 and bad == 0, "%d of the threads' children were theirs, %d were not", good, bad)
    ]], home, native())
  end)

  it("finds nothing on its standard output and error but what it has written itself", function()
    local path = scratch.dir() .. "/stderr"
    local output = scratch.sh("timeout -k 5 120 " .. fixture.lua_command(PRELUDE .. LIVE .. [[
      open()
      everything()
      bough.run(everything)
      print "its own"
      instance:stop(0.1)
      box:close()
    ]], home) .. " 2>" .. scratch.quote(path))
    assert.equal("its own\n", output)
    assert.equal("", fixture.read_file(path))
  end)

  describe("leaves no live process running", function()
    local function ends(ending, expected)
      local mark = fixture.long_time()
      local command = fixture.lua_command(PRELUDE .. LIVE .. ([[
        open()
        local kept = {}
        local function start(place)
          local process = place:popen "echo ready; (setsid sleep MARK &); sleep MARK"
          must(process.stdout:read() == "ready", "it is not ready")
          kept[#kept + 1] = process
        end
        for _ = 1, 3 do start(instance) end
        start(base)
        local session = base:session()
        start(session)
        local terminal = instance:exec { shell = "sleep MARK", pty = true }
        local plain = bough.host("echo ready; sleep MARK"):start()
        must(plain.stdout:read() == "ready", "it is not ready")
        for _, process in ipairs(kept) do bough.spawn(pcall, process.wait, process) end
        bough.step(0)
        io.write(box:info().keeper_pid, "\n")
        io.flush()
        ENDING
      ]]):gsub("MARK", mark):gsub("ENDING", (ending:gsub("%%", "%%%%"))), home)
      local output = scratch.sh(("timeout -k 5 120 %s; echo status $?"):format(command))
      local keeper = assert(output:match "^(%d+)\n", output)
      assert.match(expected, output)
      fixture.gone("sleep " .. mark)
      fixture.until_true("the keeper's end", function() return not fixture.alive(keeper) end)
    end

    it("when the script ends", function() ends("", "status 0") end)
    it("when it ends by an error", function() ends("error 'enough'", "enough.*status 1") end)
    it("when os.exit does not close the state", function() ends("os.exit(false, false)", "status 1") end)
    it("when a task raises meanwhile", function()
      ends("bough.run(function() error 'in a task' end)", "in a task.*status 1")
    end)
    it("when it is killed", function()
      ends("os.execute('kill -9 ' .. read_file '/proc/self/stat':match '^%d+')", "status 137")
    end)
  end)

  it("may close an engine of one state while another state uses the store", function()
    local output = host([[
      local bough = require "bough"
      local one, two = bough.open(arg[1]), bough.open(arg[1])
      local base = two.images:use "busybox"
      local run = base:start "sleep 0.2; echo two"
      one:close()
      print(run:wait().stdout)
      two:close()
    ]], home)
    assert.equal("two\n\n", output)
  end)
end)
