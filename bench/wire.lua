--- ConTree over HTTP: our client and our server, against each other, a canned server, curl and wrk.
--
--   make bench BENCH_FLAGS="--only wire"
--
-- Called by bench/run.lua with its small tools. What a client costs is measured against a server that does nothing
-- (bench/canned.lua), what the server costs with wrk, which costs next to nothing.

local bough = require "bough"

local M = {}

local TOKEN = "bench-token-0123456789abcdef"

local function read_file(path)
  local file <close> = io.open(path)
  return file and file:read "a"
end

local function resident() return tonumber(read_file "/proc/self/status":match "VmRSS:%s*(%d+)") end

-- Starts a program that says where it listens; `stop` ends it.
local function start(t, command)
  local pid_file = t.dir .. "/pid"
  local pipe = assert(io.popen(("echo $$ >%s; exec %s 2>%s/log"):format(pid_file, command, t.dir)))
  local line
  repeat line = pipe:read "l" until not line or line:find "://" or line:find "listening on"
  if not line then error(command .. ": " .. (read_file(t.dir .. "/log") or "did not start"), 0) end
  local pid = read_file(pid_file):match "%d+"
  return {
    url = line:match "https?://[^%s\"']+" or "http://" .. line:match "listening on (%S+)",
    pid = pid,
    stop = function()
      os.execute("kill " .. pid)
      pipe:close()
    end,
  }
end

local function canned(t, events, seconds)
  return start(t, ("lua5.4 bench/canned.lua %d %g"):format(events, seconds))
end

local function serve(t)
  return start(t, ("env BOUGH_BUILD=%s lua5.4 bin/bough serve --home %s/serve --port 0 --token %s --image busybox"
    .. " --log none --limit instance_max_concurrency=2000"):format(t.build, t.dir, TOKEN))
end

local function open(server, options)
  options = options or {}
  options.token = TOKEN
  return bough.open(server.url, options)
end

-- Wall and CPU seconds of `fn`.
local function timed(t, fn)
  local started, cpu = t.now(), os.clock()
  fn()
  return t.now() - started, os.clock() - cpu
end

-- Runs `fn` `count` times, `width` at a time.
local function many(count, width, fn)
  local left = count
  bough.run(function()
    local tasks = {}
    for i = 1, width do
      tasks[i] = bough.spawn(function()
        while left > 0 do
          left = left - 1
          fn()
        end
      end)
    end
    for _, task in ipairs(tasks) do task:wait() end
  end)
end

-- CPU seconds of the children of this process that have ended, by the shell's own `times`.
local function curl_times(t, count, width, url)
  local config = t.dir .. "/curl"
  local file <const> = assert(io.open(config, "w"))
  for _ = 1, count do
    file:write(('url = "%s"\noutput = "/dev/null"\nheader = "Authorization: Bearer %s"\n'):format(url, TOKEN))
    file:write "next\n"
  end
  file:close()
  local started = t.now()
  local text = t.output_of(("bash -c 'TIMEFORMAT=\"%%U %%S\"; time curl -s --parallel --parallel-max %d -K %s' 2>&1")
    :format(width, config))
  local user, system = text:match "([%d.]+) ([%d.]+)%s*$"
  return t.now() - started, tonumber(user) + tonumber(system)
end

local function plain_requests(t)
  local server <const> = canned(t, 1, 1)
  local box <close> = open(server)
  local count, width = t.scaled(5000), 50
  local ratios, cpu_ratios, ours, theirs = {}, {}, {}, {}
  many(100, width, function() box.images:list { number = 10 } end)
  for i = 1, t.quick and 2 or 5 do
    local wall, cpu = timed(t, function() many(count, width, function() box.images:list { number = 10 } end) end)
    ours[i] = wall / count * 1e6
    if t.installed "curl" then
      local curl_wall, curl_cpu = curl_times(t, count, width, server.url .. "/v1/images?limit=10")
      theirs[i], ratios[i], cpu_ratios[i] = curl_wall / count * 1e6, wall / curl_wall, cpu / curl_cpu
    end
  end
  t.say("  GET /v1/images, %d at a time: %.0f us each; curl --parallel %.0f us; ratio %.2f, of CPU %.2f", width,
    t.median(ours), t.median(theirs), t.median(ratios), t.median(cpu_ratios))
  server.stop()
end

-- `count` operations at once, each with a live stream of events.
---@param command { [1]: string?, shell: string? }
local function live_streams(t, name, server, count, command)
  local box <close> = open(server, { max_concurrency = count })
  local image = box.images:use "busybox"
  image:run { command[1] or "true", stdout = function() end, disposable = true } -- what is loaded once
  collectgarbage()
  collectgarbage()
  local before, peak, lines = resident(), 0, 0
  local wall, cpu = timed(t, function()
    bough.run(function()
      local tasks = {}
      for i = 1, count do
        tasks[i] = bough.spawn(function()
          image:run {
            command[1], shell = command.shell, disposable = true, text = "lines",
            stdout = function() lines = lines + 1 end,
          }
        end)
      end
      local watcher <close> = bough.spawn(function()
        while true do
          bough.sleep(0.05)
          peak = math.max(peak, resident())
        end
      end)
      for _, task in ipairs(tasks) do task:wait() end
      assert(watcher.status ~= "failed")
    end)
  end)
  t.say("  %d operations with live streams, %s: %.1f s, %.0f KiB and %.2f ms of CPU each (%d lines)", count, name, wall,
    (peak - before) / count, cpu / count * 1000, lines)
end

local function spawns(t, server)
  local box <close> = open(server)
  local image = box.images:use "busybox"
  for _, width in ipairs { 1, 16 } do
    local count = t.scaled(width == 1 and 300 or 1000)
    many(20, width, function() image:run { "true", disposable = true } end)
    local wall = timed(t, function() many(count, width, function() image:run { "true", disposable = true } end) end)
    local kept = timed(t, function() many(count, width, function() image:run { "true" } end) end)
    t.say("  spawn to completion, %d at a time: %.0f/s disposable, %.0f/s with an image", width, count / wall,
      count / kept)
  end
end

local function wrk(t, server, seconds)
  local text = t.output_of(("wrk -t1 -c32 -d%ds --latency -H 'Authorization: Bearer %s' '%s/v1/images?limit=10' 2>&1")
    :format(seconds, TOKEN, server.url))
  return tonumber(text:match "Requests/sec:%s*([%d.]+)"), text:match "50%%%s+(%S+)", text:match "99%%%s+(%S+)", text
end

-- Connections that send a header a byte at a time, by a program of their own.
local SLOW = [[
local uv = require "luv"
local host, port, count = arg[1], tonumber(arg[2]), tonumber(arg[3])
for i = 1, count do
  local socket, at, text = uv.new_tcp(), 0, "GET /v1/images HTTP/1.1\r\nHost: x\r\nX-Slow: " .. ("y"):rep(1000)
  socket:connect(host, port, function(problem)
    if problem then return end
    socket:read_start(function() end)
    local timer = uv.new_timer()
    timer:start(10 * (i %% 10), 100, function()
      at = at + 1
      if socket:is_closing() or at > #text then return timer:close() end
      socket:write(text:sub(at, at))
    end)
  end)
end
print "listening on nothing"
io.stdout:flush()
uv.run()
]]

local function requests(t, server)
  if not t.installed "wrk" then return t.say "  wrk: not installed" end
  local seconds = t.quick and 2 or 5
  wrk(t, server, 1)
  local rate, median, high, text = wrk(t, server, seconds)
  if not rate then return t.say("  wrk: %s", text) end
  t.say("  serve, GET /v1/images by wrk, 32 connections: %.0f/s, median %s, 99%% %s", rate, median, high)
  local script = t.dir .. "/slow.lua"
  local file <const> = assert(io.open(script, "w"))
  file:write((SLOW:gsub("%%%%", "%%")))
  file:close()
  local host, port = server.url:match "//([^:/]+):(%d+)"
  local slow = start(t, ("lua5.4 %s %s %s 500"):format(script, host, port))
  local slow_rate, slow_median, slow_high = wrk(t, server, seconds)
  t.say("  the same beside 500 clients that send a byte in 0.1 s: %.0f/s (%.2f), median %s, 99%% %s", slow_rate,
    slow_rate / rate, slow_median, slow_high)
  slow.stop()
end

---@param t table bench/run.lua's tools
function M.run(t)
  t.say "\nConTree over HTTP"
  local count = t.scaled(1000)
  plain_requests(t)
  local quiet <const> = canned(t, 20, 0.1)
  live_streams(t, "canned server", quiet, count, { "x" })
  quiet.stop()
  local server <const> = serve(t)
  live_streams(t, "bough serve", server, count, {
    shell = "i=0; while [ $i -lt 5 ]; do echo $i; sleep 1; i=$((i+1)); done",
  })
  spawns(t, server)
  requests(t, server)
  server.stop()
end

return M
