--- The performance programme: us and our peers, all in one run.
--
--   make bench                                  everything
--   make bench BENCH_FLAGS="--quick"            a tenth of it, to see that it works
--   make bench BENCH_FLAGS="--only compare"     one part: compare, resident, branches, chain, idle, bulk, live, wire
--
-- See bench/README.md for what is measured and how to read it.

local system = require "system"
local bough = require "bough"

local now = system.monotime
local opts = { build = "build" }
do
  local i = 1
  while arg[i] do
    if arg[i] == "--quick" then
      opts.quick = true
    elseif arg[i] == "--only" or arg[i] == "--build" then
      opts[arg[i]:sub(3)] = arg[i + 1] or error(arg[i] .. " needs a value", 0)
      i = i + 1
    else
      error("unknown option " .. arg[i] .. ": --quick, --only PART, --build DIR", 0)
    end
    i = i + 1
  end
end

local function scaled(n)
  return opts.quick and math.max(n // 10, 2) or n
end

-- Small tools -----------------------------------------------------------------

local function output_of(command)
  local pipe = assert(io.popen(command))
  local text = pipe:read "a"
  return text, pipe:close()
end

local function sh(line)
  if not os.execute(line) then
    error("failed: " .. line, 0)
  end
end

local function read_file(path)
  local file = io.open(path)
  local text = file and file:read "a"
  if file then
    file:close()
  end
  return text
end

local function installed(program)
  local path = output_of("command -v " .. program):match "%S+"
  return path
end

local function median(list)
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  local n = #sorted
  if n == 0 then
    return 0 / 0
  end
  return n % 2 == 1 and sorted[n // 2 + 1] or (sorted[n // 2] + sorted[n // 2 + 1]) / 2
end

local function say(...)
  io.write(string.format(...), "\n")
  io.flush()
end

local dir = output_of("mktemp -d /tmp/bough-bench.XXXXXX"):match "%S+"

-- Processes -------------------------------------------------------------------

local clock_ticks = tonumber((output_of "getconf CLK_TCK")) or 100
local own_pid = read_file "/proc/self/stat":match "^%d+"

-- Fields of /proc/PID/stat from the third on, so that fields[1] is the state.
local function stat_of(pid)
  local text = read_file("/proc/" .. pid .. "/stat")
  local rest = text and text:match "^%d+ %(.*%) (.*)$" or ""
  local fields = {}
  for field in rest:gmatch "%S+" do
    fields[#fields + 1] = field
  end
  return fields
end

-- The keeper and what else it is made of. It is nobody's child, but it names its owner.
local function keepers()
  local found = {}
  local owner = "--owner\0" .. own_pid .. "-"
  for pid in output_of("ls /proc"):gmatch "%f[%d]%d+" do
    local line = read_file("/proc/" .. pid .. "/cmdline")
    if line and line:find("bough-keeper", 1, true) and line:find(owner, 1, true) then
      found[#found + 1] = pid
    end
  end
  return found
end

-- CPU seconds of the keepers and of all that they have reaped.
local function keeper_cpu()
  local ticks = 0
  for _, pid in ipairs(keepers()) do
    local fields = stat_of(pid)
    for i = 12, 15 do -- utime stime cutime cstime
      ticks = ticks + (tonumber(fields[i]) or 0)
    end
  end
  return ticks / clock_ticks
end

local function rss_kib(pid)
  return tonumber((read_file("/proc/" .. pid .. "/status") or ""):match "VmRSS:%s*(%d+)") or 0
end

local function memory()
  collectgarbage()
  collectgarbage()
  local keeper = 0
  for _, pid in ipairs(keepers()) do
    keeper = keeper + rss_kib(pid)
  end
  return rss_kib(own_pid), keeper
end

-- Contestants -------------------------------------------------------------------
-- Each is { name, fn(n) -> array of n times in seconds } or { name, why it is not here }.

local function each(fn)
  return function(n)
    local times = {}
    for i = 1, n do
      local started = now()
      fn(i)
      times[i] = now() - started
    end
    return times
  end
end

-- The way a Lua program would call it; `exec`, so that no shell stays in between.
local function popen(command)
  return function()
    local pipe = io.popen("exec " .. command .. " >/dev/null 2>&1")
    if not pipe:close() then
      error("failed: " .. command, 0)
    end
  end
end

local contestants = {}
local function enter(name, fn)
  contestants[#contestants + 1] = { name = name, fn = fn }
end
local function absent(name, why)
  contestants[#contestants + 1] = { name = name, why = why }
end

local function make_rootfs()
  local busybox = installed "busybox"
  if not busybox then
    return nil
  end
  local root = dir .. "/rootfs"
  sh(("mkdir -p %s/bin %s/proc %s/dev %s/sys %s/tmp && cp %s %s/bin/busybox")
    :format(root, root, root, root, root, busybox, root))
  sh(("for a in true sh echo; do ln -s busybox %s/bin/$a; done"):format(root))
  return root
end

-- crun cannot take every cgroup layout: the first way that works is the one measured.
local function enter_runtime(name, root)
  local path = installed(name)
  if not path or not root then
    return absent(name .. " run", "not installed")
  end
  local bundle = ("%s/%s-bundle"):format(dir, name)
  sh(("mkdir -p %s && cd %s && rm -f config.json && %s spec && ln -s %s rootfs && "
    .. [[sed -i 's/"terminal": true/"terminal": false/; s/"readonly": true/"readonly": false/; ]]
    .. [[s/"sh"$/"true"/; s|"path": "rootfs"|"path": "%s"|' config.json]])
    :format(bundle, bundle, path, root, root))
  local count = 0
  local why
  for _, flags in ipairs(name == "crun" and { "", "--cgroup-manager=disabled" } or { "" }) do
    local function run()
      count = count + 1
      popen(("%s %s run --bundle %s bough-bench-%s-%d"):format(path, flags, bundle, own_pid, count))()
    end
    if pcall(run) then
      return enter(("%s run%s"):format(name, flags ~= "" and " (no cgroups)" or ""), each(run))
    end
    why = why or output_of(("%s %s run --bundle %s bough-bench-%s-x 2>&1")
      :format(path, flags, bundle, own_pid)):match "[^\n]+"
  end
  absent(name .. " run", "does not run here: " .. (why or "no message"))
end

local function enter_floor(name, flag, root)
  local floor = opts.build .. "/bench/floor"
  local turn = 0
  local function run(n)
    turn = turn + 1
    local work = ("%s/floor%s-%d"):format(dir, flag, turn)
    local text, ok = output_of(("mkdir -p %s && %s %s -l %d %s %s /bin/true && rm -rf %s")
      :format(work, floor, flag, n, root or "/", work, work))
    if not ok then
      error("failed", 0)
    end
    local times = {}
    for us in text:gmatch "[%d.]+" do
      times[#times + 1] = tonumber(us) / 1e6
    end
    return times
  end
  if not io.open(floor) then
    return absent(name, "not built")
  elseif not pcall(run, 1) then
    return absent(name, "needs root and overlay")
  end
  enter(name, run)
end

-- Rounds, each of all contestants in turn, so that what the machine does meanwhile
-- hits all alike; a ratio is taken within a round, and the median of those is told.
local function compare(title, list, rounds, per_round)
  say("\n%s (%d rounds of %d)", title, rounds, per_round)
  local ratios, times = {}, {}
  for _, c in ipairs(list) do
    ratios[c], times[c] = {}, {}
    if c.fn then
      c.fn(2)
    end
  end
  for _ = 1, rounds do
    local base
    for _, c in ipairs(list) do
      if c.fn then
        local m = median(c.fn(per_round))
        base = base or m
        table.insert(times[c], m)
        table.insert(ratios[c], m / base)
      end
    end
  end
  for _, c in ipairs(list) do
    if c.fn then
      local low, high = math.huge, 0
      for _, r in ipairs(ratios[c]) do
        low, high = math.min(low, r), math.max(high, r)
      end
      say("  %-34s %8.2f ms   x %6.2f   (%.2f - %.2f)", c.name, median(times[c]) * 1e3,
        median(ratios[c]), low, high)
    else
      say("  %-34s %s", c.name, c.why)
    end
  end
  return function(c)
    return median(ratios[c])
  end
end

-- The programme -------------------------------------------------------------------

local verdicts = {}
local function verdict(text, measured, bound, unit)
  verdicts[#verdicts + 1] = ("  %-44s %8.2f%s  %s %.2f%s  %s"):format(text, measured, unit or "",
    "bound", bound, unit or "", measured <= bound and "met" or "NOT MET")
end

local function wanted(part)
  return not opts.only or opts.only == part
end

local function spread_word(n)
  return ("%d in flight"):format(n)
end

local function branches(base, total, in_flight)
  local cpu_host, cpu_keeper, started = os.clock(), keeper_cpu(), now()
  bough.run(function()
    local following = 0
    local workers = {}
    for w = 1, in_flight do
      workers[w] = function()
        while following < total do
          following = following + 1
          local image = base:run { shell = "echo " .. following .. " > /branch" }
          assert(image.exit_code == 0, "a branch failed")
        end
      end
    end
    bough.all(workers)
  end)
  local seconds = now() - started
  local host, keeper = os.clock() - cpu_host, keeper_cpu() - cpu_keeper
  say("  %-34s %8.1f / s   CPU %.2f s host, %.2f s keeper and sandboxes (%.2f ms a branch)",
    spread_word(in_flight), total / seconds, host, keeper, (host + keeper) / total * 1e3)
end

local function chain(base, total, edge)
  local host_before, keeper_before = memory()
  local session <close> = base:session()
  local times = {}
  for i = 1, total do
    local started = now()
    session:run { shell = "echo " .. i .. " > /step" }
    times[i] = now() - started
  end
  local first = median(table.move(times, 1, edge, 1, {}))
  local last = median(table.move(times, total - edge + 1, total, 1, {}))
  local host_after, keeper_after = memory()
  say("  first %d runs %.2f ms, last %d runs %.2f ms: x %.2f", edge, first * 1e3, edge, last * 1e3,
    last / first)
  say("  memory of the host   %6.1f MiB before, %6.1f MiB after", host_before / 1024, host_after / 1024)
  say("  memory of the keeper %6.1f MiB before, %6.1f MiB after", keeper_before / 1024,
    keeper_after / 1024)
  verdict("last run of a chain against the first", last / first, 1.5)
end

local function programme()
  local box <close> = bough.open { home = dir .. "/store" }
  local base = box.images:use "busybox"
  local root = make_rootfs()
  say("%s, %d processors, Lua %s", (output_of "uname -sr":gsub("\n", "")),
    tonumber((output_of "nproc")) or 0, _VERSION:match "[%d.]+")

  local baseline = { name = 'io.popen("true")', fn = each(popen "true") }
  local ours = { name = 'base:run { "true" }', fn = each(function()
    assert(base:run({ "true" }).exit_code == 0)
  end) }

  if wanted "compare" then
    contestants = { baseline, ours }
    enter('base:run { shell = "echo > /f" }', each(function()
      base:run { shell = "echo > /f" }
    end))
    enter_floor("floor: clone, overlay, exec", "", root)
    enter_floor("floor with a network namespace", "-n", root)
    local bwrap = installed "bwrap"
    if bwrap and root then
      local run = popen(("%s --unshare-all --bind %s / --proc /proc --dev /dev true"):format(bwrap, root))
      if pcall(run) then
        enter("bwrap --unshare-all, no snapshot", each(run))
      else
        absent("bwrap --unshare-all", "does not run here")
      end
    else
      absent("bwrap --unshare-all", "not installed")
    end
    enter_runtime("crun", root)
    enter_runtime("runc", root)
    local ratio = compare("One command", contestants, scaled(20), 10)
    verdict("base:run against io.popen", ratio(ours), 2)
  end

  if wanted "branches" then
    local total = scaled(1000)
    say("\n%d branches from one image", total)
    branches(base, total, 2)
    branches(base, total, 64)
  end

  if wanted "chain" then
    local total = scaled(1000)
    say("\nA chain of %d runs, each changing a file", total)
    chain(base, total, math.min(50, total // 2))
  end

  if wanted "idle" then
    local n = 100000
    bough.step(0)
    local started = now()
    for _ = 1, n do
      bough.step(0)
    end
    local us = (now() - started) / n * 1e6
    say("\nIdle bough.step(0): %.2f us", us)
    verdict("idle step(0)", us, 5, " us")
  end

  if wanted "bulk" then
    require("bench.bulk").run({ now = now, say = say, median = median, scaled = scaled, sh = sh, dir = dir,
      verdict = verdict, quick = opts.quick }, box)
  end

  if wanted "live" then
    require("bench.live").run({ now = now, say = say, median = median, scaled = scaled, sh = sh, dir = dir,
      verdict = verdict, quick = opts.quick, output_of = output_of, installed = installed }, box)
  end

  if wanted "wire" then
    require("bench.wire").run { now = now, say = say, median = median, scaled = scaled, dir = dir,
      quick = opts.quick, output_of = output_of, installed = installed, build = opts.build }
  end

  -- Last: the memory stays with the process.
  if wanted "resident" then
    local ballast = {}
    for i = 1, 32 do
      ballast[i] = string.char(64 + i):rep(64 << 20)
    end
    local ratio = compare(("The same with %.1f GiB resident"):format(rss_kib(own_pid) / (1 << 20)),
      { baseline, ours }, scaled(20), 10)
    verdict("base:run against io.popen, 2 GiB resident", ratio(ours), 2)
    assert(#ballast == 32)
  end
end

local ok, why = xpcall(programme, debug.traceback)
os.execute("rm -rf " .. dir)
if not ok then
  io.stderr:write("bench: ", tostring(why), "\n")
  os.exit(1)
end
if #verdicts > 0 then
  say "\nBounds"
end
for _, line in ipairs(verdicts) do
  say("%s", line)
end
