--- The program of spec/support/http_client.lua: `lua http_host.lua FILE LOG`.
--
-- FILE holds a chunk that returns a function: `return function(core, http) return options, handler end`. The
-- server runs until it is asked for /_stop?GRACE. /_counts tells connections, requests and megabytes. The access log
-- and what is reported go to LOG, a line of JSON each.

local core = require "bough.core"
local http = require "bough.serve.http"
local json = require "bough.json"

local options, handler = assert(loadfile(arg[1]))()(core, http)
local log = assert(io.open(arg[2], "a"))
log:setvbuf "line"

local function write(entry) log:write(json.write(entry), "\n") end

options.log = write
options.report = function(level, message, fields)
  write { level = level, message = message, traceback = fields and fields.traceback }
end

local function resident()
  local file <close> = assert(io.open("/proc/self/smaps_rollup"))
  local sum = 0
  for kib in file:read("a"):gmatch "Private_%a+:%s*(%d+)" do sum = sum + tonumber(kib) end
  return sum
end

local server = http.listen(options)
local grace
server:serve(function(request)
  if request.path == "/_counts" then
    local connections, requests = server:counts()
    return request:reply(200, { connections, requests, resident() })
  elseif request.path == "/_stop" then
    request:reply(204)
    grace = tonumber(request.query)
    core.spawn(function() server:stop(grace) end)
    return
  end
  return handler(request)
end)
print("listening on " .. server.address .. ":" .. server.port)
io.stdout:flush()
server:wait()
log:write('{"ended":true}\n')
