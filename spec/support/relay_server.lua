--- The program of spec/support/relay.lua: `lua relay_server.lua HOST:PORT|unix:PATH`.
--
-- Passes bytes on, both ways, and does what it is told over a second port: /cut, /hold, /rate?N, /count.

local uv = require "luv"

local host, port = arg[1]:match "^([^:/]+):(%d+)$"
local path = arg[1]:match "^unix:(.*)$"

local open, total = {}, 0 -- the connections
local held = false -- new ones are taken, and nothing else
local rate -- bytes a second from each client

local function close(handle)
  if not handle:is_closing() then handle:close() end
end

local function pass(from, to, slowly, over)
  local function read(problem, data)
    if problem or not data then return over() end
    to:write(data)
    if slowly and rate then
      from:read_stop()
      local timer = uv.new_timer()
      timer:start(math.ceil(#data * 1000 / rate), 0, function()
        timer:close()
        if not from:is_closing() then from:read_start(read) end
      end)
    end
  end
  from:read_start(read)
end

local function accept(server)
  local client = uv.new_tcp()
  server:accept(client)
  client:nodelay(true)
  total = total + 1
  local behind = path and uv.new_pipe(false) or uv.new_tcp()
  local one = { client = client }
  open[one] = true
  local function over()
    open[one] = nil
    close(client)
    close(behind)
  end
  one.over = over
  if held then
    return client:read_start(function(problem, data)
      if problem or not data then over() end
    end)
  end
  local function connected(problem)
    if problem then return over() end
    pass(client, behind, true, over)
    pass(behind, client, false, over)
  end
  if path then
    behind:connect(path, connected)
  else
    behind:connect(host, math.tointeger(tonumber(port)), connected)
  end
end

local orders = {}

function orders.cut()
  local list = {}
  for one in pairs(open) do list[#list + 1] = one end
  for _, one in ipairs(list) do
    if not one.client:is_closing() then one.client:close_reset() end
    one.over()
  end
end

function orders.hold(value) held = value == "1" end

function orders.rate(value) rate = math.tointeger(tonumber(value)) end

function orders.count()
  local now = 0
  for _ in pairs(open) do now = now + 1 end
  return ("%d %d"):format(total, now)
end

local function obey(server)
  local client = uv.new_tcp()
  server:accept(client)
  local head = ""
  client:read_start(function(_, data)
    if not data then return close(client) end
    head = head .. data
    if not head:find "\r\n\r\n" then return end
    local name, value = head:match "^%S+ /(%a+)%??(%S*)"
    local text = orders[name](value) or ""
    client:write(("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"):format(#text, text),
      function() close(client) end)
  end)
end

local function listen(what)
  local server = uv.new_tcp()
  assert(server:bind("127.0.0.1", 0))
  server:listen(1024, function() what(server) end)
  return server:getsockname().port
end

uv.new_signal():start("sigpipe", function() end)
print(("listening on 127.0.0.1:%d 127.0.0.1:%d"):format(listen(obey), listen(accept)))
io.stdout:flush()
uv.run()
