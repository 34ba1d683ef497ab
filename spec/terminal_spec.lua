--- process:attach: the caller's terminal in the hands of a process. With real terminals, by tmux.

local lfs = require "lfs"

local bough = require "bough"
local core = require "bough.core"
local fixture = require "spec.engine.fixture"
local host = require "bough.host"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"
local screen = require "spec.support.screen"

-- In front of each script: a session, and a command in a terminal of the sandbox.
local PRELUDE = [[
local bough = require "bough"
local box <close> = bough.open(arg[1])
local s <close> = box.images:use "busybox":session()
local function start(line) return s:popen { shell = line, pty = { term = os.getenv "TERM" } } end
local function until_there(path)
  while not io.open(path) do bough.sleep(0.005) end
end
]]

-- A megabyte with all byte values in no order.
local function noise()
  local bytes, x = {}, 12345
  for i = 1, 1048576 do
    x = (x * 1103515245 + 12345) & 0x7fffffff
    bytes[i] = string.char((x >> 16) & 255)
  end
  return table.concat(bytes)
end

describe("attach", function()
  local home, term

  setup(function()
    home = scratch.store()
    local box <close> = bough.open(home)
    box.images:use "busybox"
  end)

  before_each(function() term = screen.open() end)
  after_each(function() term:close() end)

  local function run(script, ...) return term:run(PRELUDE .. script, home, ...) end

  -- Waits for the end of what was run, with this exit code, and the terminal as it was.
  local function done(code)
    term:sees(("[done %d]"):format(code or 0))
    term:restored()
  end

  describe("a terminal", function()
    it("is the sandboxed shell's until it ends, and its code is returned", function()
      run [[
        local p <close> = start "exec sh"
        print("code " .. p:attach())
      ]]
      term:handed_over()
      term:sees "#"
      term:type("echo in $(hostname)", "Enter")
      term:sees "in bough"
      term:type("exit 7", "Enter")
      term:sees "code 7"
      done()
    end)

    it("has the size of ours, now and when it changes", function()
      run [[
        local p <close> = start "trap 'stty size' WINCH; stty size; while :; do read -t 1 x && exit; done"
        p:attach()
      ]]
      term:sees "30 100"
      term:resize(70, 20)
      term:sees "20 70"
      term:type("", "Enter")
      done()
    end)

    it("gives Ctrl-C, Ctrl-Z and Ctrl-D to the inner program alone", function()
      run [[
        local p <close> = start "exec sh"
        print("code " .. p:attach())
      ]]
      term:sees "#"
      -- What is typed while the shell still edits the line is not echoed by the terminal.
      term:type("echo take $((1 + 1)); cat", "Enter")
      term:sees "take 2"
      term:type("first", "Enter")
      term:sees("first", 2)
      term:type("", "C-c")
      term:sees "^C"
      term:type("echo take $((1 + 2)); cat", "Enter")
      term:sees "take 3"
      term:type("second", "Enter")
      term:sees("second", 2)
      term:type("", "C-z")
      term:sees "Stopped"
      term:type("echo still $((40 + 2))", "Enter")
      term:sees "still 42"
      term:type("exec true", "Enter")
      term:sees "code 0"
      done()
    end)

    it("lets vi edit a file", function()
      run [[
        local p <close> = start "exec vi /note"
        print("code " .. p:attach())
        io.write("the note: ", s:read "/note")
      ]]
      term:sees "~"
      term:type("iwritten in vi")
      term:sees "I /note"
      term:type("", "Escape")
      term:sees "- /note"
      term:type(":wq", "Enter")
      term:sees "code 0"
      term:sees "the note: written in vi"
      done()
    end)

    it("lets less show page after page", function()
      run [[
        local p <close> = start "seq 1 200 | sed 's/^/line /' > /lines; exec less /lines"
        print("code " .. p:attach())
      ]]
      term:sees "line 29"
      assert.is_nil(term:text():find("line 40", 1, true))
      term:type("", "Space")
      term:sees "line 58"
      term:type("", "G")
      term:sees "line 200"
      term:type("", "q")
      term:sees "code 0"
      done()
    end)

    it("brings a megabyte of any bytes in as it was typed", function()
      local data = noise()
      run [[
        local p <close> = start "stty raw -echo; echo ready; head -c 1048576 | sha256sum > /sum"
        print("code " .. p:attach())
        print("sum " .. s:read("/sum"):sub(1, 32))
      ]]
      term:sees "ready"
      term:tmux("load-buffer " .. scratch.file(data))
      term:tmux "paste-buffer -r"
      term:sees("sum " .. core.sha256(data):sub(1, 32))
      done()
    end)

    it("shows a megabyte of any bytes as it was written", function()
      local data = noise()
      local taken = term.dir .. "/taken"
      term:tmux("pipe-pane -O " .. scratch.quote("cat > " .. taken))
      run([[
        s:apply_files { ["/data"] = arg[2] }
        local p <close> = start "stty raw -echo; printf BEGIN; cat /data; printf END"
        local code = p:attach()
        io.write("code ", code, "\n")
      ]], scratch.file(data))
      local text
      fixture.until_true("all of the output", function()
        text = fixture.read_file(taken) or ""
        return text:find("ENDcode 0", 1, true)
      end)
      assert(text:find("BEGIN" .. data .. "END", 1, true), "the bytes are not what they were")
      term:restored()
    end)

    it("shows first what was not read before", function()
      run [[
        local p <close> = start "echo alpha; echo beta; read x; echo gamma"
        print("read " .. p.stdout:read "l")
        p:attach()
      ]]
      term:sees "beta"
      term:type("", "Enter")
      term:sees "gamma"
      done()
      assert.equals(1, select(2, term:text():gsub("alpha", "")))
    end)

    it("gets what was typed ahead, read by stdio already or not", function()
      run([[
        print "type"
        io.stdin:read(1)
        print "more"
        until_there(arg[2])
        local p <close> = start "read a; read b; echo \"got [$a] [$b]\""
        p:attach()
      ]], term.dir .. "/typed")
      term:sees "type"
      term:type("abc", "Enter")
      term:sees "more"
      term:type("def", "Enter")
      term:sees "def"
      scratch.file("", term.dir .. "/typed")
      term:sees "got [bc] [def]"
      done()
    end)

    it("ends with the process although another one has its terminal open", function()
      run [[
        local p <close> = start "trap '' HUP; sleep 1000 & echo here; exit 5"
        print("code " .. p:attach())
      ]]
      term:sees "code 5"
      done()
    end)

    it("leaves other tasks running", function()
      run [[
        local p <close> = start "exec cat"
        bough.run(function()
          local task = bough.spawn(function() return p:attach() end)
          for i = 1, 3 do
            bough.sleep(0.01)
            io.write("tick ", i, "\r\n")
          end
          p.stdin:write "from another task\n"
          p.stdin:close()
          print("code " .. task:wait())
        end)
      ]]
      term:sees "tick 3"
      term:sees("from another task", 2)
      term:sees "code 0"
      done()
    end)

    it("is one process's at a time", function()
      run [[
        bough.run(function()
          local p <close> = start "exec cat"
          local q <close> = start "exec cat"
          local task = bough.spawn(function() return p:attach() end)
          bough.sleep(0)
          local ok, e = pcall(q.attach, q)
          p:kill()
          print(ok, e.kind, task:wait())
        end)
      ]]
      term:sees "busy"
      term:sees "137"
      done()
    end)

    it("is free again after the detach keys, and the process lives", function()
      run [[
        local p <close> = start "exec cat"
        print("first", p:attach { detach = "ctrl-p,ctrl-q" })
        print("still", p:poll())
        print("second", p:attach { detach = "\29" })
        p:kill()
        print("killed", p:wait())
      ]]
      term:handed_over()
      term:type("one", "Enter")
      term:sees("one", 2)
      term:type("", "C-p", "C-p", "C-q") -- the first is a key like any other
      term:sees "still"
      term:handed_over()
      term:type("two", "Enter")
      term:sees("two", 2)
      term:type("", "C-]")
      term:sees "137"
      done()
    end)

    it("is for a plain command of the host too", function()
      run [[
        local p <close> = require "bough.host".popen { "sh", "-c", "read x; stty size; exit 3", pty = true }
        print("code " .. p:attach())
      ]]
      term:handed_over()
      term:type("", "Enter")
      term:sees "30 100"
      term:sees "code 3"
      done()
    end)

    it("comes back from a session's shell to the interactive interpreter", function()
      term:start("STORE=" .. scratch.quote(home) .. " %s", [[
        os.execute(arg[-1] .. " -i -e 'bough = require \"bough\" box = bough.open(os.getenv \"STORE\")'")
      ]])
      term:sees "Copyright"
      term:type("s = box.images:use('busybox'):session()", "Enter")
      term:type("s:shell()", "Enter")
      term:sees "#"
      term:type("echo word > /kept; exit 4", "Enter")
      term:sees "\n4\n"
      term:type("s:shell 'test -t 0 && exit 5'", "Enter")
      term:sees "\n5\n"
      term:type("print('kept ' .. s:read '/kept')", "Enter")
      term:sees "kept word"
      term:type("s:close() box:close() os.exit(true, true)", "Enter")
      term:restored()
    end)
  end)

  describe("the settings", function()
    -- How it ends -> the script. A second value is what it prints.
    local ends = {
      ["the process ends"] = { [[
        local p <close> = start "exit 3"
        print("then", p:attach())
      ]], "3" },
      ["the attached task is cancelled"] = { [[
        bough.run(function()
          local p <close> = start "exec cat"
          local task = bough.spawn(function() p:attach() end)
          until_there(arg[2])
          task:cancel()
          local _, e = pcall(task.wait, task)
          print("then", e.kind)
        end)
      ]], "cancelled" },
      ["a deadline passes"] = { [[
        local p <close> = start "exec cat"
        bough.spawn(until_there, arg[2])
        local _, e = pcall(bough.deadline, 0.3, p.attach, p)
        print("then", e.kind)
      ]], "timeout" },
      ["an error of another task ends the program"] = { [[
        local p <close> = start "exec cat"
        bough.run(function()
          bough.spawn(function() p:attach() end)
          until_there(arg[2])
          error "boom"
        end)
      ]], "boom", 1 },
      ["the program ends while a task is attached"] = { [[
        local p = start "exec cat"
        bough.spawn(function() p:attach() end)
        while not io.open(arg[2]) do bough.step(0.01) end
        os.exit(0, true)
      ]] },
      ["os.exit leaves the Lua state as it is"] = { [[
        local p = start "exec cat"
        bough.spawn(function() p:attach() end)
        while not io.open(arg[2]) do bough.step(0.01) end
        os.exit(6)
      ]], nil, 6 },
      ["the process is killed from elsewhere"] = { [[
        bough.run(function()
          local p <close> = start "exec cat"
          local task = bough.spawn(function() return p:attach() end)
          until_there(arg[2])
          p:kill()
          print("then", task:wait())
        end)
      ]], "137" },
      ["the process is closed by somebody else"] = { [[
        bough.run(function()
          local p <close> = start "exec cat"
          local task = bough.spawn(function() return p:attach() end)
          until_there(arg[2])
          p:close()
          local _, e = pcall(task.wait, task)
          print("then", e.kind)
        end)
      ]], "closed" },
      ["the session is closed"] = { [[
        bough.run(function()
          local p <close> = start "exec cat"
          local task = bough.spawn(function() return p:attach() end)
          until_there(arg[2])
          s:close()
          print("then", (pcall(task.wait, task)))
        end)
      ]], "then" },
    }

    for name, case in pairs(ends) do
      it("are as before when " .. name, function()
        local mark = term.dir .. "/attached"
        run(case[1], mark)
        if case[1]:find("until_there", 1, true) or case[1]:find("arg[2]", 1, true) then
          term:handed_over()
          scratch.file("", mark)
        end
        if case[2] then term:sees(case[2]) end
        done(case[3])
      end)
    end

    for name, code in pairs { KILL = 137, TERM = 143 } do
      it("are as before when SIG" .. name .. " ends the host", function()
        local path = run [[
          local p <close> = start "exec cat"
          p:attach()
        ]]
        term:handed_over()
        term:type("here", "Enter")
        term:sees("here", 2)
        scratch.sh(("kill -%s %d"):format(name, screen.pid_of(path)))
        done(code)
      end)
    end

    it("become raw again after the host was stopped and goes on", function()
      local path = run [[
        local p <close> = start "exec cat"
        print("code " .. p:attach())
      ]]
      term:handed_over()
      term:type("one", "Enter")
      term:sees("one", 2)
      scratch.sh(("kill -STOP %d"):format(screen.pid_of(path)))
      term:sees "Stopped"
      term:type("stty sane", "C-j") -- this shell leaves them as they are
      term:cooked()
      term:type("echo $((2 * 21))", "Enter")
      term:sees "42"
      term:type("fg", "Enter")
      term:handed_over()
      term:type("two", "Enter")
      term:sees("two", 2)
      term:type("", "C-d")
      term:sees "code 0"
    end)

    it("stay the shell's while the host is in the background", function()
      term:start("%s &", PRELUDE .. [[
        local p <close> = start "echo inside; exec cat"
        print("code " .. p:attach())
      ]], home)
      term:type("echo $((2 * 21))", "Enter")
      term:sees "42"
      assert.equals(term.settings_before, term:settings())
      term:type("fg", "Enter")
      term:sees "inside"
      term:handed_over()
      term:type("word", "Enter")
      term:sees("word", 2)
      term:type("", "C-d")
      term:sees "code 0"
      term:restored()
    end)
  end)

  it("raises closed when the terminal goes away, and leaves the process alone", function()
    local out = term.dir .. "/out"
    local path = scratch.file(PRELUDE .. [[
      local p <close> = start "exec cat"
      local ok, e = pcall(p.attach, p)
      local file <close> = io.open(arg[2], "w")
      file:write(tostring(ok), " ", e.kind, " ", tostring((p:poll())))
    ]])
    local command = fixture.lua_command("dofile(table.remove(arg, 1))", path, home, out)
    local preload = os.getenv "LD_PRELOAD"
    if preload then command = "LD_PRELOAD=" .. scratch.quote(preload) .. " " .. command end
    local pane = term:tmux("split-window -P -F '#{pane_tty} #{pane_id}' "
      .. scratch.quote("trap '' HUP; " .. command))
    local tty, id = pane:match "(%S+) (%S+)"
    fixture.until_true("the second terminal to be raw", function() return screen.is_raw(tty) end)
    term:tmux("kill-pane -t " .. id)
    fixture.until_true("the end of attach", function() return (lfs.attributes(out, "size") or 0) > 0 end)
    assert.equals("false closed nil", fixture.read_file(out))
    fixture.gone(path)
  end)
end)

describe("attach, of a terminal that nobody reads,", function()
  it("does not hold up the loop, and loses nothing", function()
    local ticked = scratch.dir() .. "/ticked"
    local p <close> = host.popen { "sh", "-c", fixture.lua_command([[
      local bough = require "bough"
      local p <close> = require "bough.host".popen { "seq", "300000", pty = true }
      bough.run(function()
        local task = bough.spawn(function() return p:attach { pty = true } end)
        for _ = 1, 50 do bough.sleep(0.005) end
        io.open(arg[1], "w"):close()
        task:wait()
      end)
    ]], ticked), pty = true }
    fixture.until_true("the ticks", function() return lfs.attributes(ticked) end)
    local lines = 0
    for line in p.stdout:lines() do
      lines = lines + 1
      if line ~= ("%d\r"):format(lines) then error(("line %d is %q"):format(lines, line)) end
    end
    assert.equals(300000, lines)
    assert.equals(0, p:wait())
  end)
end)

describe("attach without a terminal", function()
  -- Runs `line`, in which "%s" is a host that attaches to `command`, which has a terminal of its own or pipes.
  local function run(line, command, pty)
    local host_line = fixture.lua_command([[
      local bough = require "bough"
      local pty = arg[2] == "pty"
      local options = { "sh", "-c", arg[1], pty = pty, stdin = not pty and bough.PIPE or nil }
      local p <close> = require "bough.host".popen(options)
      os.exit(p:attach(), true)
    ]], command, pty and "pty" or "stdin")
    return scratch.sh((line:gsub("%%s", function() return host_line end)))
  end

  it("copies standard input with its end, and both outputs", function()
    local dir = scratch.dir()
    assert.equals("code 3\n", run(("printf 'one\\ntwo' | %%s >%s/out 2>%s/err; echo code $?")
      :format(dir, dir), "cat; echo oops >&2; exit 3"))
    assert.equals("one\ntwo", fixture.read_file(dir .. "/out"))
    assert.equals("oops\n", fixture.read_file(dir .. "/err"))
  end)

  it("copies a file, and a megabyte of any bytes", function()
    local data = noise()
    local dir = scratch.dir()
    local path = scratch.file(data)
    run(("%%s <%s >%s/file; cat %s | %%s | cat >%s/pipe"):format(path, dir, path, dir), "cat")
    assert.equals(core.sha256(data), core.sha256(fixture.read_file(dir .. "/file")))
    assert.equals(core.sha256(data), core.sha256(fixture.read_file(dir .. "/pipe")))
  end)

  it("goes on after input that ends at once", function()
    assert.equals("late\n", run("%s </dev/null", "cat; sleep 0.1; echo late"))
  end)

  it("types the end of input into a terminal of the process's own", function()
    assert.matches("got word", run("echo word | %s", [[read x; echo "got $x"; sleep 0.2; cat]], true))
  end)

  it("raises closed when nobody reads what it writes", function()
    assert.matches("nobody reads our standard output", run("{ %s 2>&1 >&3 | cat >&2; } 3>&1 | head -n 1",
      "while :; do echo y; done"))
  end)

  it("says what is missing for a terminal", function()
    local p <close> = host.popen { "cat", stdin = bough.PIPE }
    assert.matches("start it with pty = true", raises("state", p.attach, p, { pty = true }).message)
    local q <close> = host.popen { "cat", pty = true }
    local message = raises("state", q.attach, q, { pty = true }).message
    assert.matches("standard input is not a terminal", message)
    assert.matches("pty = false", message, 1, true)
  end)

  it("refuses options that it does not know", function()
    local p <close> = host.popen { "cat", stdin = bough.PIPE }
    local function refuses(options, pattern)
      assert.matches(pattern, raises("invalid", p.attach, p, options).message)
    end
    refuses({ pyt = true }, 'did you mean "pty"')
    refuses({ detatch = "x" }, 'did you mean "detach"')
    refuses({ escape = "x" }, "known are pty, detach")
    refuses({ true }, "names are strings")
    refuses({ pty = 1 }, "pty must be true or false")
    refuses({ detach = "" }, "empty")
    refuses({ detach = 3 }, "must be a string")
    refuses({ pty = false, detach = "x" }, "needs pty = true")
    refuses("pty", "must be a table")
  end)

  it("refuses detach keys that could not be typed, or that a word would be", function()
    local p <close> = host.popen { "cat", stdin = bough.PIPE }
    for _, keys in ipairs { "foo", "ctrl+]", "^]", "ctrl-", "ctrl-ab", "ctrl-P", "Ctrl-p", "ctrl-?", "ctrl-1",
      "ctrl-\0", "ctrl-p,q,", ",", ",a", "a,,b", "ctrl-p, ctrl-q", "ctrl-p ctrl-q", "\16\17", "é", "\0\0" } do
      for _, pty in ipairs { true, false } do
        local message = raises("invalid", p.attach, p, { pty = pty, detach = keys }).message
        assert.matches("is no key: write \"ctrl-]\"", message, 1, true)
        assert.is_nil(message:find "\n")
      end
      raises("invalid", p.attach, p, { detach = keys })
    end
    local many = ("x,"):rep(16)
    assert.matches("at most 16", raises("invalid", p.attach, p, { detach = many .. "x" }).message)
    for _, keys in ipairs { many .. ",", many:sub(1, -2) } do
      raises(keys == many .. "," and "invalid" or "state", p.attach, p, { pty = true, detach = keys })
    end
    for _, keys in ipairs { "x", "~,.", "\29", "\0", "ctrl-a", "ctrl-z", "ctrl-[", "ctrl-\\", "ctrl-]", "ctrl-^",
      "ctrl-_", "ctrl-@", "ctrl- ", "ctrl-p,ctrl-q", "ctrl-p,q" } do
      raises("state", p.attach, p, { pty = true, detach = keys }) -- that it has no terminal
    end
  end)

  it("refuses streams that are closed or handed over, of a process that is over too", function()
    local p <close> = host.popen { "cat", stdin = bough.PIPE }
    p.stdout:close()
    assert.matches("stdout is closed: close", raises("state", p.attach, p, { pty = false }).message)

    local q <close> = host.popen { "echo", "unread" }
    q:wait()
    q.stdout:close()
    assert.matches("stdout is closed: close", raises("state", q.attach, q, { pty = false }).message)

    local r <close> = host.popen { "sh", "-c", "echo word; exit 3" }
    local s <close> = host.popen { "cat", stdin = r.stdout }
    r:wait()
    assert.matches("stdout cannot be copied: it was handed", raises("state", r.attach, r, { pty = false }).message)
    assert.equals("word\n", s.stdout:read "a")
  end)

  it("returns the code of a process that is over, and shows what nobody has read", function()
    local lines = {}
    for name, script in pairs {
      unread = 'host.popen { "sh", "-c", "printf out; printf err >&2; exit 3" } p:wait()',
      partly = 'host.popen { "sh", "-c", "echo one; echo two; exit 3" } p.stdout:read "l" p:wait()',
      read = 'host.popen { "sh", "-c", "echo one; exit 3" } p.stdout:read "a" p:wait()',
      said = 'host.popen { "sh", "-c", "echo one; exit 3" } p:communicate()',
      closed = 'host.popen { "sh", "-c", "echo one; exit 3" } p.stdout:read "a" p.stdout:close() p:wait()',
      terminal = 'host.popen { "sh", "-c", "printf one; exit 3", pty = true } p:wait()',
      terminal_read = 'host.popen { "sh", "-c", "printf one; exit 3", pty = true } p.stdout:read "a" p:wait()',
      stdin_closed = 'host.popen { "sh", "-c", "exit 3", pty = true } p.stdin:close() p:wait()',
    } do
      for _, pty in ipairs { "nil", "true", "false" } do
        local attach = fixture.lua_command(([[
          local bough = require "bough"
          local host = require "bough.host"
          local p <close> = %s
          local code = p:attach { pty = %s }
          io.write(" ", code, " ", p:attach { pty = %s }) -- nothing is left
        ]]):format(script, pty, pty))
        local text = scratch.sh(("echo typed | { timeout -k 5 60 %s 2>&1; cat; }"):format(attach))
        lines[name] = lines[name] or text
        assert.equals(lines[name], text)
      end
    end
    assert.same({
      unread = "outerr 3 3typed\n", partly = "two\n 3 3typed\n", read = " 3 3typed\n", said = " 3 3typed\n",
      closed = " 3 3typed\n", terminal = "one 3 3typed\n", terminal_read = " 3 3typed\n",
      stdin_closed = " 3 3typed\n",
    }, lines)
  end)

  it("does not wait for who has inherited the streams of a process that is over", function()
    local text = fixture.run_lua [[
      local p <close> = require "bough.host".popen { "sh", "-c", "sleep 1000 & echo $!; exit 3" }
      p:wait()
      print(p:attach { pty = false })
    ]]
    local child, code = text:match "^(%d+)\n(%d+)\n$"
    assert.equals("3", code)
    scratch.sh("kill " .. child)
  end)

  -- Who is to be served besides: a function, other tasks.
  for place, call in pairs {
    ["the main thread"] = "attach()",
    ["a task"] = "bough.spawn(attach):wait()",
    ["a coroutine inside a task"] = "bough.spawn(function() return coroutine.wrap(attach)() end):wait()",
  } do
    it("serves the function that has the other output, from " .. place, function()
      local text = fixture.run_lua([[
        local bough = require "bough"
        local got, size = {}, 0
        local p <close> = require "bough.host".popen {
          "sh", "-c", "echo err >&2; echo out; read x; head -c 1000000 /dev/zero >&2; exit 4",
          stdin = "go\n", stderr = function(c) got[#got + 1] = c size = size + #c end,
        }
        local function attach() return p:attach { pty = false } end
        local code = ]] .. call .. [[

        print(code, table.concat(got):sub(1, 4), size)
      ]])
      assert.equals("out\n4\terr\n\t1000004\n", text)
    end)
  end

  it("lets other tasks run, from the main thread and from a task", function()
    for _, call in ipairs { "attach()", "bough.spawn(attach):wait()" } do
      local text = fixture.run_lua([[
        local bough = require "bough"
        local p <close> = require "bough.host".popen { "sh", "-c", "echo here; exec sleep 1000" }
        local ticks = 0
        bough.spawn(function()
          for _ = 1, 5 do
            bough.sleep(0.002)
            ticks = ticks + 1
          end
          p:kill()
        end)
        local function attach() return p:attach { pty = false } end
        local code = ]] .. call .. [[

        print(code, ticks)
      ]])
      assert.equals("here\n137\t5\n", text)
    end
  end)
end)
