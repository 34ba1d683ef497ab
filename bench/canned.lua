--- A server that answers as a ConTree service would, without doing anything: what a client costs by itself.
--
--   lua5.4 bench/canned.lua EVENTS SECONDS
--
-- Each operation has EVENTS events of output, SECONDS apart. Prints "listening on 127.0.0.1:PORT". Knows only what the
-- benchmark asks: /v1/whoami, /v1/images, a spawn, its events, and the operation.

local uv = require "luv"

local EVENTS, SECONDS = math.tointeger(tonumber(arg[1])) or 20, tonumber(arg[2]) or 0.1
local IMAGE = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
local count = 0

local function answer(client, status, body, more)
  client:write(("HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"):format(
    status, #body, more or "", body))
end

local function frame(id, kind, spid, data)
  local payload = ('{"id":%d,"ts":"2026-01-01T00:00:00.5Z","spid":%d,"type":"%s","data":%s}'):format(id, spid, kind,
    data)
  local text = ("id: %d\nevent: %s\ndata: %s\n\n"):format(id, kind, payload)
  return ("%x\r\n%s\r\n"):format(#text, text)
end

local LINE = '{"value":"one line of output, as programs write them, and not a short one at that\\n","encoding":"ascii"}'

local function follow(client)
  client:write "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
  client:write(frame(0, "spawn", 1,
    '{"pid":2,"command":"x","args":[],"shell":true,"cwd":"/","uid":0,"gid":0,"timeout":60,"truncate_at":1048576}'))
  local sent, timer = 0, uv.new_timer()
  timer:start(math.floor(SECONDS * 1000), math.floor(SECONDS * 1000), function()
    if client:is_closing() then return timer:close() end
    sent = sent + 1
    if sent <= EVENTS then return client:write(frame(sent, "stdout", 1, LINE)) end
    timer:close()
    client:write(frame(sent, "completion", 0, '{"status":"SUCCESS","duration_ms":2000,"result_image_uuid":null}'))
    client:write "0\r\n\r\n"
  end)
end

local RESULT = '{"state":{"exit_code":0,"signal":-1,"pid":2,"timed_out":false,"core_dump":false,"stopped":false,'
  .. '"continued":false},"resources":{"elapsed_time":2.0,"user_cpu_time":0.1,"system_cpu_time":0.1,"max_rss":1024},'
  .. '"stdout":{"value":"","encoding":"ascii"},"stderr":{"value":"","encoding":"ascii"}}'

local function respond(client, method, path)
  if method == "POST" then
    count = count + 1
    local uuid = ("%08x-0000-4000-8000-%012x"):format(count, count)
    return answer(client, "201 Created", ('{"uuid":"%s"}'):format(uuid), "Location: /v1/operations/" .. uuid .. "\r\n")
  elseif path:find("/events", 1, true) then
    return follow(client)
  end
  local uuid = path:match "^/v1/operations/([%x-]+)"
  if method == "DELETE" then
    return client:write "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
  elseif uuid then
    return answer(client, "200 OK", ('{"uuid":"%s","kind":"instance","status":"SUCCESS","created_at":'
      .. '"2026-01-01T00:00:00Z","duration":2.0,"image_uuid":"%s","result_image_uuid":null,"metadata":{"command":"x",'
      .. '"image":"%s","result":%s},"result":{"image":null,"tag":null}}'):format(uuid, IMAGE, IMAGE, RESULT))
  elseif path:find "^/v1/images" then
    return answer(client, "200 OK", ('{"images":[{"uuid":"%s","tag":"busybox","created_at":"2026-01-01T00:00:00Z",'
      .. '"operation_uuid":null}]}'):format(IMAGE))
  elseif path:find("/v1/inspect/?tag=", 1, true) then
    return client:write(("HTTP/1.1 302 Found\r\nLocation: %s/\r\nContent-Length: 0\r\n\r\n"):format(IMAGE))
  elseif path:find "^/v1/inspect/" then
    return answer(client, "200 OK", ('{"uuid":"%s","tag":"busybox","created_at":"2026-01-01T00:00:00Z",'
      .. '"operation_uuid":null}'):format(IMAGE))
  elseif path:find "^/v1/whoami" then
    return answer(client, "200 OK", '{"token_uuid":"0d7c6c1a-4a2e-4a7b-8a61-3b5b1a1e9f20","token_expiration":null,'
      .. '"permissions":{"list":true,"spawn":true,"cancel":true},"limits":{"instance_max_timeout":3600,'
      .. '"instance_max_concurrency":100000},"operations_stat":{}}')
  end
  answer(client, "404 Not Found", '{"error":"no such thing","status":404}')
end

-- Takes whole requests off what has come; returns the rest.
local function take(client, input)
  while true do
    local head, rest = input:match "^(.-\r\n)\r\n(.*)$"
    if not head then return input end
    local size = math.tointeger(tonumber(head:lower():match "content%-length: *(%d+)" or 0))
    if #rest < size then return input end
    local method, path = head:match "^(%S+) (%S+)"
    input = rest:sub(size + 1)
    respond(client, method, path)
  end
end

local signal = uv.new_signal()
signal:start "sigpipe"
signal:unref()
local server = uv.new_tcp()
assert(server:bind("127.0.0.1", 0))
server:listen(4096, function()
  local client, input = uv.new_tcp(), ""
  server:accept(client)
  client:nodelay(true)
  client:read_start(function(problem, data)
    if problem or not data then
      if not client:is_closing() then client:close() end
      return
    end
    input = take(client, input .. data)
  end)
end)
print(("listening on 127.0.0.1:%d"):format(server:getsockname().port))
io.stdout:flush()
uv.run()
