--- The program of spec/support/proxy.lua: `lua proxy_server.lua [host:port of a server behind it]`.
--
-- What the function that handles a request may return:
--   status, headers, body      the answer; the rest is optional
--   length = n | false         another Content-Length than the true one; false: none, the body ends with the
--                              connection
--   chunked = true             in chunks; `pieces` = { "a", "b" } gives them one by one
--   endless = true             the body again and again, without a length
--   raw = "..."                these bytes in place of an answer, then the end
--   gated = true               of `pieces`, each but the first waits for a `server:go()` of its own
--   tunnel = true              of a CONNECT: connects, and passes on what comes
--   forward = true             asks the server behind; `drop` = { "range" } leaves out headers of the request
-- and what goes wrong on the way:
--   delay = seconds            before anything is said
--   cut_at = n, reset = true   the connection ends after n bytes of body, by a reset
--   cut_at = n, half = true    nothing more is said after n bytes of body, but what comes is still taken
--   duplicate = n              the n-th piece that a server behind it sends of the body is passed on twice
--   slow_head = seconds        between two bytes of the headers
--   stall_at = n               it falls silent there, for ever
--   corrupt_at = n             the byte there is another
--   trickle = n                n bytes at a time
-- With state.refuses_expect a request that asks whether its body is wanted is told 417.

local cjson = require "cjson"
local uv = require "luv"

local upstream_host, upstream_port = (arg[1] or ""):match "^(.*):(%d+)$"

local handler = function() return { status = 404, body = "no handler\n" } end
local state, log, waiting, connections = {}, {}, {}, 0
local gated = {} -- what goes on at the next /_go
local KEEP = 1 << 20

local function changed()
  for i = #waiting, 1, -1 do
    if waiting[i].holds(log) then
      waiting[i].answer()
      table.remove(waiting, i)
    end
  end
end

local function close(handle)
  if handle and not handle:is_closing() then handle:close() end
end

-- Sends the body of an answer, with what is to go wrong. `more(callback)` gives the next piece or nil.
local Sender = {}
Sender.__index = Sender

function Sender:finish(keep)
  self.entry.done = true
  changed()
  if keep then self.connection:next_request() else close(self.connection.socket) end
end

function Sender:fail()
  self.entry.failed = true
  changed()
  local socket = self.connection.socket
  if self.how.half and not socket:is_closing() then
    socket:shutdown()
  elseif self.how.reset and not socket:is_closing() then
    socket:close_reset()
  else
    close(socket)
  end
end

function Sender:write(data, after)
  local socket = self.connection.socket
  if socket:is_closing() then return end
  socket:write(data, function(problem)
    if problem then return self.connection:lost(problem) end
    after()
  end)
end

function Sender:piece(data, after)
  local how, entry = self.how, self.entry
  local stop
  for _, name in ipairs { "cut_at", "stall_at" } do
    local at = how[name]
    if at and entry.sent + #data >= at then
      data = data:sub(1, at - entry.sent)
      stop = name
    end
  end
  local at = how.corrupt_at
  if at and at >= entry.sent and at < entry.sent + #data then
    local i = at - entry.sent + 1
    data = data:sub(1, i - 1) .. string.char(data:byte(i) ~ 255) .. data:sub(i + 1)
  end
  entry.sent = entry.sent + #data
  if how.chunked and #data > 0 then data = ("%x\r\n%s\r\n"):format(#data, data) end
  self:write(data, function()
    if stop == "cut_at" then return self:fail() end
    if stop == "stall_at" then
      entry.stalled = true
      return changed()
    end
    after()
  end)
end

-- The headers, at once or byte by byte.
function Sender:head(data, after)
  local pause = self.how.slow_head
  if not pause then return self:write(data, after) end
  local timer, at = uv.new_timer(), 0
  timer:start(0, math.max(1, math.floor(pause * 1000)), function()
    at = at + 1
    if self.connection.socket:is_closing() then return close(timer) end
    if at < #data then return self.connection.socket:write(data:sub(at, at)) end
    close(timer)
    self:write(data:sub(at), after)
  end)
end

local reasons = { [200] = "OK", [206] = "Partial Content", [401] = "Unauthorized", [404] = "Not Found" }

local function answer_here(self)
  local how = self.how
  local body = how.pieces and table.concat(how.pieces) or how.body or ""
  local head = { ("HTTP/1.1 %d %s"):format(how.status or 200, reasons[how.status or 200] or "Other") }
  for name, value in pairs(how.headers or {}) do
    for _, one in ipairs(type(value) == "table" and value or { value }) do
      head[#head + 1] = name .. ": " .. one
    end
  end
  local unframed = how.endless or how.length == false
  if how.chunked then
    head[#head + 1] = "Transfer-Encoding: chunked"
  elseif not unframed then
    head[#head + 1] = ("Content-Length: %d"):format(how.length or #body)
  end
  head[#head + 1] = unframed and "Connection: close\r\n\r\n" or "\r\n"
  local at, step = 1, how.trickle or (how.pieces and 1) or 65536
  local function more()
    if self.entry.method == "HEAD" then return self:finish(true) end
    local piece
    if how.pieces then
      piece = how.pieces[at]
    else
      piece = body:sub(at, at + step - 1)
    end
    if piece and piece ~= "" and how.gated and at > 1 and not self.through then
      self.through = true
      gated[#gated + 1] = more
      self.entry.waits = true
      return changed()
    end
    self.through = nil
    self.entry.waits = nil
    if piece and piece ~= "" then
      at = at + step
      return self:piece(piece, more)
    end
    if how.endless then
      at = 1
      return more()
    end
    if how.chunked then
      return self:write("0\r\n\r\n", function() self:finish(true) end)
    end
    self:finish(not unframed and #body == (how.length or #body))
  end
  self:head(table.concat(head, "\r\n"), more)
end

local function forward(self)
  local how, entry = self.how, self.entry
  local behind = uv.new_tcp()
  self.connection.behind = behind
  local dropped = { connection = true, host = true }
  for _, name in ipairs(how.drop or {}) do dropped[name] = true end
  local lines = { entry.method .. " " .. entry.path .. " HTTP/1.1", "connection: close",
    "host: " .. upstream_host .. ":" .. upstream_port }
  for name, value in pairs(entry.headers) do
    if not dropped[name] then lines[#lines + 1] = name .. ": " .. value end
  end
  local queue, busy, ended, head = {}, false, false, ""
  local left -- of a body with a length
  local pieces = 0
  local function pump()
    if busy then return end
    local data = table.remove(queue, 1)
    if data then
      busy = true
      return self:piece(data, function()
        busy = false
        pump()
      end)
    end
    if ended then
      close(behind)
      self:finish(false)
    end
  end
  local function body(data)
    if left then
      left = left - #data
      if left <= 0 then ended = true end
    end
    queue[#queue + 1] = data
    pieces = pieces + 1
    if pieces == how.duplicate then queue[#queue + 1] = data end
    pump()
  end
  behind:connect(upstream_host, math.tointeger(tonumber(upstream_port)), function(problem)
    if problem then return self:fail() end
    behind:write(table.concat(lines, "\r\n") .. "\r\n\r\n" .. (self.body or ""))
    behind:read_start(function(why, data)
      if why or not data then
        ended = true
        return head == nil and pump() or nil
      end
      if head == nil then return body(data) end
      head = head .. data
      local top, rest = head:match "^(.-\r\n)\r\n(.*)$"
      if not top then return end
      head = nil
      left = math.tointeger(tonumber(top:lower():match "content%-length: *(%d+)"))
      if left == 0 or entry.method == "HEAD" then ended = true end
      top = top:gsub("\r\n[Cc]onnection:[^\r]*", "")
      busy = true
      if rest ~= "" then body(rest) end
      self:head(top .. "Connection: close\r\n\r\n", function()
        busy = false
        pump()
      end)
    end)
  end)
end

-- From here on the connection is the client's and the server's it wants.
local function tunnel(connection, entry)
  local host, port = entry.path:match "^%[?(.-)%]?:(%d+)$"
  local behind, socket = uv.new_tcp(), connection.socket
  connection.behind = behind
  socket:read_stop()
  local function over()
    close(behind)
    close(socket)
  end
  behind:connect(host == "localhost" and "127.0.0.1" or host, math.tointeger(tonumber(port)), function(problem)
    if problem then return over() end
    socket:write "HTTP/1.1 200 Connection established\r\n\r\n"
    if connection.input ~= "" then behind:write(connection.input) end
    for from, to in pairs { [socket] = behind, [behind] = socket } do
      from:read_start(function(_, data)
        if not data then return over() end
        if not to:is_closing() then to:write(data) end
      end)
    end
  end)
end

local function respond(connection, entry, body)
  local good, how = pcall(handler, entry, state)
  if not good then how = { status = 500, body = tostring(how) } end
  local self = setmetatable({ connection = connection, entry = entry, how = how, body = body }, Sender)
  local function go()
    if how.raw then
      self:write(how.raw, function() self:finish(false) end)
    elseif how.forward then
      forward(self)
    elseif how.tunnel then
      tunnel(connection, entry)
    else
      answer_here(self)
    end
  end
  if not how.delay then return go() end
  local timer = uv.new_timer()
  timer:start(math.floor(how.delay * 1000), 0, function()
    close(timer)
    go()
  end)
end

local function control(connection, path, body)
  local function say(status, text)
    local head = ("HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n"):format(status, #text)
    if not connection.socket:is_closing() then connection.socket:write(head .. text) end
    connection:next_request()
  end
  if path == "/_log" then return say(200, #log == 0 and "[]" or cjson.encode(log)) end
  if path == "/_go" then
    local list = gated
    gated = {}
    for _, go in ipairs(list) do go() end
    return say(200, "")
  end
  local chunk, why = load(body, "=test")
  if not chunk then return say(500, why) end
  if path == "/_wait" then
    local function holds(entries)
      local good, result = pcall(chunk, entries)
      return not good or result
    end
    if holds(log) then return say(200, "") end
    waiting[#waiting + 1] = { holds = holds, answer = function() say(200, "") end }
    return
  end
  handler, state, log, gated = chunk(), {}, {}, {}
  say(200, "")
end

local Connection = {}
Connection.__index = Connection

function Connection:next_request()
  self.entry = nil
  self:parse()
end

-- The client has gone.
function Connection:lost(why)
  local entry = self.entry
  close(self.behind)
  close(self.socket)
  if entry and not entry.done and not entry.failed then
    entry.aborted = why
    changed()
  end
end

function Connection:parse()
  if self.entry then return end
  if not self.head then
    if self.input:find "^\22" then return close(self.socket) end -- TLS: a server without it hangs up
    local head, rest = self.input:match "^(.-\r\n)\r\n(.*)$"
    if not head then return end
    local method, path = head:match "^(%S+) (%S+)"
    local headers = {}
    for name, value in head:gmatch "\r\n([^:\r\n]+): *([^\r\n]*)" do headers[name:lower()] = value end
    self.input = rest
    self.head = { method = method, path = path, headers = headers, connection = self.number, sent = 0 }
    self.left = math.tointeger(tonumber(headers["content-length"] or 0))
    self.body, self.body_size = {}, 0
    if headers.expect and state.refuses_expect then
      log[#log + 1] = self.head
      self.head = nil
      self.socket:write "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 3\r\n\r\nno\n"
      return self:parse()
    end
    if headers.expect then self.socket:write "HTTP/1.1 100 Continue\r\n\r\n" end
  end
  local part = self.input:sub(1, self.left)
  self.input = self.input:sub(#part + 1)
  self.left = self.left - #part
  self.body_size = self.body_size + #part
  if self.body_size <= KEEP or upstream_host then self.body[#self.body + 1] = part end
  if self.left > 0 then return end
  local entry, body = self.head, table.concat(self.body)
  entry.body, entry.body_size = body:sub(1, KEEP), self.body_size
  self.head, self.entry = nil, entry
  if entry.path:find "^/_" then return control(self, entry.path, body) end
  log[#log + 1] = entry
  changed()
  respond(self, entry, body)
end

local broken_pipe = uv.new_signal()
broken_pipe:start("sigpipe", function() end)
broken_pipe:unref()

local server = uv.new_tcp()
assert(server:bind("127.0.0.1", 0))
server:listen(128, function()
  local socket = uv.new_tcp()
  server:accept(socket)
  socket:nodelay(true)
  connections = connections + 1
  local connection = setmetatable({ socket = socket, number = connections, input = "" }, Connection)
  socket:read_start(function(problem, data)
    if data then
      connection.input = connection.input .. data
      return connection:parse()
    end
    connection:lost(problem or "closed")
  end)
end)
print(("listening on 127.0.0.1:%d"):format(server:getsockname().port))
io.stdout:flush()
uv.run()
