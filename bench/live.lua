--- Live processes: streams, pipelines, starting them, and talking to them, against what else a Lua program could use.
--
--   make bench BENCH_FLAGS="--only live"
--
-- Called by bench/run.lua with its small tools. In each round every contestant takes its turn, and each round begins
-- with another one. All run the same programs: the busybox of this machine is that of the image.

local bough = require "bough"

local M = {}

local LINE = ("0123456789abcdef"):rep(4):sub(1, 63) .. "\n"

-- CPU ---------------------------------------------------------------------------

local function read_file(path)
  local file = io.open(path)
  local text = file and file:read "a"
  if file then file:close() end
  return text
end

-- Ticks of a process and of all that it has reaped.
local function ticks_of(pid)
  local text = read_file(("/proc/%s/stat"):format(pid))
  local ticks, n = 0, 0
  for field in (text and text:match "^.*%)(.*)$" or ""):gmatch "%S+" do
    n = n + 1
    if n >= 12 and n <= 15 then ticks = ticks + tonumber(field) end -- utime stime cutime cstime
  end
  return ticks
end

local function ticks_below(pid)
  local ticks = ticks_of(pid)
  for child in (read_file(("/proc/%s/task/%s/children"):format(pid, pid)) or ""):gmatch "%d+" do
    ticks = ticks + ticks_below(child)
  end
  return ticks
end

-- CPU seconds of this process and of the keeper, with their children.
local function cpu_meter(t, keeper)
  local ticks_per_second = tonumber((t.output_of "getconf CLK_TCK")) or 100
  return function() return (ticks_of "self" + ticks_below(keeper)) / ticks_per_second end
end

-- Rounds ------------------------------------------------------------------------

---@class bench.contestant
---@field name string
---@field run (fun(): number?)? one item; returns its seconds where it has taken them itself
---@field why string? why it is not here, in place of `run`
---@field elsewhere boolean? what it costs is not spent by us and our children
---@field parts integer? how many there are in an item, whose time is that of one

-- Seconds of `count` items.
local function take_times(t, contestant, count)
  local times = {}
  for i = 1, count do
    local started = t.now()
    local own = contestant.run()
    times[i] = own or t.now() - started
  end
  return times
end

--- A table of all contestants; ratios to the first.
---@param t table
---@param title string
---@param rounds integer
---@param count integer items in a round
---@param list bench.contestant[]
---@return fun(contestant: bench.contestant): number ratio median of the rounds
local function contest(t, title, rounds, count, list)
  t.say("  %s (%d rounds of %d)", title, rounds, count)
  local running, times, ratios, spent = {}, {}, {}, {}
  for _, c in ipairs(list) do
    if c.run then
      running[#running + 1] = c
      times[c], ratios[c], spent[c] = {}, {}, 0
      c.run() -- once for nothing: caches, programs read in
    end
  end
  for round = 1, rounds do
    local medians = {}
    for i = 1, #running do
      local c = running[(i + round) % #running + 1]
      collectgarbage()
      local before = t.cpu()
      medians[c] = t.median(take_times(t, c, count))
      spent[c] = spent[c] + t.cpu() - before
    end
    for _, c in ipairs(running) do
      table.insert(times[c], medians[c])
      table.insert(ratios[c], medians[c] / medians[list[1]])
    end
  end
  for _, c in ipairs(list) do
    if c.run then
      local low, high = math.huge, 0
      for _, r in ipairs(ratios[c]) do low, high = math.min(low, r), math.max(high, r) end
      t.say("    %-36s %9.3f ms  x %5.2f  (%.2f - %.2f)%s", c.name, t.median(times[c]) * 1e3, t.median(ratios[c]), low,
        high, c.elsewhere and "" or ("  CPU %.2f ms"):format(spent[c] / (rounds * count * (c.parts or 1)) * 1e3))
    else
      t.say("    %-36s %s", c.name, c.why)
    end
  end
  return function(c) return t.median(ratios[c]) end
end

-- What is measured -----------------------------------------------------------------

local function check(condition)
  if not condition then error("a contestant did not do its work", 2) end
end

-- A command line of the shell's, as a Lua program would give it.
local function piped(line) return assert(io.popen(line, "r")) end

local function peak_mib()
  return (tonumber((read_file "/proc/self/status" or ""):match "VmHWM:%s*(%d+)") or 0) / 1024
end

local function reset_peak()
  local file = io.open("/proc/self/clear_refs", "w")
  if file then
    file:write "5"
    file:close()
  end
end

-- `cat` of one file, again and again, so that the disk has no part in it.
local function cat(path, size, total)
  return "busybox cat" .. (" " .. path):rep(total // size)
end

-- Reads a stream to its end by `read`, and checks how much there was.
local function drained(total, read)
  local size = 0
  while true do
    local chunk = read()
    if not chunk then break end
    size = size + #chunk
  end
  check(size == total)
end

local function by_popen(line, total, format)
  return function()
    local file <close> = piped("exec " .. line)
    drained(total, function() return file:read(format) end)
  end
end

local function by_reader(instance, line, total, format)
  return function()
    local process <close> = instance:exec("exec " .. line)
    local stdout = process.stdout
    drained(total, function() return stdout:read(format) end)
    check(process:wait() == 0)
  end
end

local function streams(t, instance, file, size)
  local total = t.quick and size * 2 or 1 << 30
  local line, inside = cat(file, size, total), cat("/data", size, total)
  local mib = total >> 20
  local lua = { name = "io.popen, read(65536)", run = by_popen(line, total, 65536) }
  local chunks = { name = "reader, read(65536)", run = by_reader(instance, inside, total, 65536) }
  local whatever = { name = 'reader, read "c"', run = by_reader(instance, inside, total, "c") }
  local ratio = contest(t, ("%d MiB from cat"):format(mib), t.rounds, 1, {
    lua, chunks, whatever,
    { name = "a pipe between two programs", run = function() t.sh(line .. " | busybox cat >/dev/null") end },
  })
  t.verdict("read(65536) of a stream against io.popen", ratio(chunks), 1)
  t.verdict('read "c" of a stream against io.popen', ratio(whatever), 1)
  reset_peak()
  local before = peak_mib()
  chunks.run()
  t.say("    peak memory of the host: %.1f MiB before, %.1f MiB while it read", before, peak_mib())

  local function count_lines(next_line)
    local count = 0
    for _ in next_line do count = count + 1 end
    check(count == total // #LINE)
  end
  local theirs = { name = "io.popen, lines()", run = function()
    local pipe <close> = piped("exec " .. line)
    count_lines(pipe:lines())
  end }
  local ours = { name = "reader, lines()", run = function()
    local process <close> = instance:exec("exec " .. inside)
    count_lines(process.stdout:lines())
  end }
  ratio = contest(t, ("%d MiB in lines of %d bytes"):format(mib, #LINE), t.rounds, 1, { theirs, ours })
  t.verdict("lines of a stream against io.popen", ratio(ours), 1)

  theirs = { name = 'io.popen, read "a"', run = function()
    local pipe <close> = piped("exec " .. line)
    check(#pipe:read "a" == total)
  end }
  ours = { name = 'reader, read "a"', run = function()
    local process <close> = instance:exec("exec " .. inside)
    check(#process.stdout:read "a" == total)
  end }
  local captured = { name = "communicate()", run = function()
    local process <close> = instance:exec("exec " .. inside)
    check(#process:communicate() == total)
  end }
  ratio = contest(t, ("%d MiB in one string"):format(mib), t.rounds, 1, { theirs, ours, captured })
  t.verdict('read "a" of a stream against io.popen', ratio(ours), 1)
end

local function pipelines(t, instance, image, file, size)
  local function shell(line, answer)
    return function()
      local pipe <close> = piped(line)
      check(pipe:read "n" == answer)
    end
  end
  local function short(place)
    return (place:cmd { "echo", "hello" } | place:cmd { "tr", "a-z", "A-Z" } | place:cmd { "wc", "-c" })
  end
  local session <close> = image:session()
  local ours = { name = "three commands in an instance", run = function() check(short(instance):read "n" == 6) end }
  local ratio = contest(t, "echo | tr | wc", t.rounds, t.scaled(50), {
    { name = "io.popen, the same in sh", run = shell("busybox echo hello | busybox tr a-z A-Z | busybox wc -c", 6) },
    ours,
    { name = "in a session: boot, and an image", run = function() check(short(session):read "n" == 6) end },
  })
  t.verdict("a short pipeline against sh", ratio(ours), 1.1)

  local total = t.quick and size or 256 << 20
  local line, inside = cat(file, size, total), cat("/data", size, total)
  ours = { name = "three commands in an instance", run = function()
    local heavy = instance:cmd("exec " .. inside) | instance:cmd { "cat" } | instance:cmd { "wc", "-c" }
    check(heavy:read "n" == total)
  end }
  ratio = contest(t, ("%d MiB through cat | cat | wc"):format(total >> 20), t.rounds, 1, {
    { name = "io.popen, the same in sh", run = shell(line .. " | busybox cat | busybox wc -c", total) }, ours,
  })
  t.verdict("a heavy pipeline against sh", ratio(ours), 1.1)
end

-- The command line that runs `true` in a container that sleeps, and a function that ends it; or nil and why there is
-- none. podman wants other words on other machines: the first that work are taken.
local function podman_container(t, image)
  if not t.installed "podman" then return nil, "not installed" end
  local root = t.dir .. "/podman-root"
  image:download("/", root)
  t.sh(("mkdir -p %s/proc %s/dev %s/sys %s/run %s/etc"):format(root, root, root, root, root))
  local why
  for _, flags in ipairs { "", "--cgroups=disabled", "--runtime runc" } do
    local podman = ("podman --root %s/podman --runroot %s/podman-run --storage-driver vfs --events-backend none "
      .. "--cgroup-manager cgroupfs "):format(t.dir, t.dir)
    if flags:find "runtime" then podman, flags = podman .. flags .. " ", "" end
    local name = "bough-bench-" .. tostring(math.random(0)):sub(-8)
    local text, good = t.output_of(("%s run -d --name %s --network none --ulimit nofile=1024:1024 "
      .. "--ulimit nproc=1000:1000 %s --rootfs %s /bin/sleep 3600 2>&1"):format(podman, name, flags, root))
    if good then
      local function remove() os.execute(("%s rm -f -t 0 %s >/dev/null 2>&1"):format(podman, name)) end
      return ("%s exec %s true"):format(podman, name), remove
    end
    os.execute(("%s rm -f -t 0 %s >/dev/null 2>&1"):format(podman, name))
    why = why or text:match "[^\n]+"
  end
  return nil, "does not run here: " .. (why or "no message")
end

local function starts(t, instance, image)
  local function shell(command)
    return function() check(piped("exec " .. command .. " >/dev/null 2>&1"):close()) end
  end
  local list = {
    { name = 'io.popen("true")', run = shell "true" },
    { name = 'io.popen("busybox true")', run = shell "busybox true" },
  }
  local ours = { name = 'instance:exec { "true" }', run = function()
    local process <close> = instance:exec { "true" }
    check(process:wait() == 0)
  end }
  list[#list + 1] = ours
  list[#list + 1] = { name = "the same without pipes", run = function()
    local process <close> = instance:exec { "true", stdout = false, stderr = false }
    check(process:wait() == 0)
  end }
  local podman, remove = podman_container(t, image)
  list[#list + 1] = { name = "podman exec, less its shell", elsewhere = true, run = podman and shell(podman),
    why = not podman and remove or nil }
  local _ <close> = setmetatable({}, { __close = function() if podman then remove() end end })
  local ratio = contest(t, "true, from its start to its exit code", t.rounds, t.scaled(50), list)
  t.verdict("exec in a running instance against io.popen", ratio(ours), 1)
end

-- Turns with one `cat`, over luv: seconds of one turn.
local function luv_turns(t, uv, count)
  local input, output = uv.new_pipe(false), uv.new_pipe(false)
  local process
  process = assert(uv.spawn("busybox", { args = { "cat" }, stdio = { input, output } }, function() process:close() end))
  local left, text, started, seconds = count + 1, "", nil, nil
  output:read_start(function(problem, chunk)
    check(not problem)
    if not chunk then return output:close() end
    text = text .. chunk
    if text:sub(-1) ~= "\n" then return end
    check(text == LINE)
    text, left = "", left - 1
    if left == 0 then
      seconds = (t.now() - started) / count
      return input:close()
    end
    started = started or t.now() -- the first one stands for the start of the program
    input:write(LINE)
  end)
  input:write(LINE)
  uv.run()
  return seconds
end

local function own_turns(t, instance, count)
  local process <close> = instance:exec { "cat", stdin = bough.PIPE }
  local stdin, stdout = process.stdin, process.stdout
  local function turn()
    stdin:write(LINE)
    check(stdout:read "L" == LINE)
  end
  turn()
  local started = t.now()
  for _ = 1, count do turn() end
  return (t.now() - started) / count
end

local function turns(t, instance)
  local count = t.scaled(1000)
  local found, uv = pcall(require, "luv")
  local list = {
    { name = "luv, uv.spawn", parts = count, run = found and function() return luv_turns(t, uv, count) end or nil,
      why = not found and "not installed" or nil },
    { name = "instance:exec, in a plain call", parts = count, run = function()
      return own_turns(t, instance, count)
    end },
    { name = "the same in a task", parts = count, run = function()
      return bough.run(own_turns, t, instance, count)
    end },
  }
  if not found then table.insert(list, table.remove(list, 1)) end
  contest(t, ("a line to cat and back, %d times"):format(count), t.rounds, 1, list)
end

local function boots(t, image)
  local function ended(process) check(process:wait() == 0 and process.image) end
  contest(t, "a sandbox of its own: boot, true, and an image", t.rounds, t.scaled(30), {
    { name = 'io.popen("true")', run = function() check(piped("exec true >/dev/null 2>&1"):close()) end },
    { name = 'image:popen { "true" }', run = function() ended(image:popen { "true" }) end },
    { name = 'image:popen "echo > /f"', run = function() ended(image:popen "echo > /f") end },
    { name = 'image:run { "true" }', run = function() check(image:run({ "true" }).ok) end },
  })
end

--- Runs them all.
---@param t table now, say, median, scaled, sh, output_of, installed, dir, verdict, quick: the tools of bench/run.lua
---@param box bough.engine
function M.run(t, box)
  t.say "\nLive processes"
  t.cpu = cpu_meter(t, box:info().keeper_pid)
  t.rounds = t.quick and 3 or 7
  local file, size = t.dir .. "/lines", 64 << 20
  local out <const> = assert(io.open(file, "wb"))
  out:write(LINE:rep(size // #LINE))
  out:close()
  local base = box.images:use "busybox"
  local image = base:apply_files { ["/data"] = file }
  do
    local instance <close> = image:boot()
    streams(t, instance, file, size)
    pipelines(t, instance, image, file, size)
    starts(t, instance, base)
    turns(t, instance)
  end
  boots(t, base)
end

return M
