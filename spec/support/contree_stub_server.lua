--- The program of spec/support/contree_stub.lua.
--
-- The function that handles a request gets it (see `stub:log`; `json` is its body taken apart) and a table that stays.
-- What it may return:
--   status                     default 200
--   headers                    name -> value
--   json = value, body = "..." the content; none: empty
--   gzip = true                the content is compressed (with a sync flush after each piece); "cut": without its end
--   pieces = { "a", 0.5, ... } the content bit by bit, each sent by itself, in chunks; a number is a pause in seconds
--   every = { seconds, "x" }   after the pieces, this again and again
--   stall = true               after the pieces nothing more, and the connection stays
--   cut = true, reset = true   after the pieces the connection ends, without the end of the content
--   length = n                 another Content-Length than the true one
--   raw = "..."                these bytes in place of an answer, then the end
--   delay = seconds            before anything is said; hang = true: for ever
-- It finds these: `frame(id, type, data, spid?)` and `raw_frame(id, event, text)` make events, `json(value)` writes
-- JSON, `array(items)` marks an array, `uuid(n)` makes a UUID, `null`.

local cjson = require "cjson"
local schema = require "spec.support.contree_schema"
local uv = require "luv"

local handler = function() return { status = 404, json = { error = "no handler", status = 404 } } end
local state, log, waiting, connections = {}, {}, {}, 0
local began = uv.hrtime()

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

-- What handlers find --------------------------------------------------------------------------------

local array_meta = {}

local function write_json(value)
  local kind = type(value)
  if kind ~= "table" then
    if math.type(value) == "float" and math.tointeger(value) then value = math.tointeger(value) end
    return cjson.encode(value)
  end
  local parts = {}
  if value[1] ~= nil or getmetatable(value) == array_meta then
    for i, item in ipairs(value) do parts[i] = write_json(item) end
    return "[" .. table.concat(parts, ",") .. "]"
  end
  for name, item in pairs(value) do parts[#parts + 1] = cjson.encode(name) .. ":" .. write_json(item) end
  return "{" .. table.concat(parts, ",") .. "}"
end

local tools = setmetatable({ json = write_json, null = cjson.null }, { __index = _G })

function tools.array(items) return setmetatable(items, array_meta) end

function tools.uuid(n) return ("%08x-0000-4000-8000-%012x"):format(n, n) end

function tools.raw_frame(id, event, text)
  return (id and ("id: %d\n"):format(id) or "") .. (event and ("event: %s\n"):format(event) or "")
    .. ("data: %s\n\n"):format(text)
end

function tools.frame(id, kind, data, spid)
  return tools.raw_frame(id, kind, write_json {
    id = id, ts = "2026-09-04T12:00:01.5Z", spid = spid or 1, type = kind, data = data,
  })
end

-- gzip of stored blocks -----------------------------------------------------------------------------

local crc_of = {}
for i = 0, 255 do
  local c = i
  for _ = 1, 8 do c = (c & 1 == 1) and (0xEDB88320 ~ (c >> 1)) or (c >> 1) end
  crc_of[i] = c
end

local Gzip = {}
Gzip.__index = Gzip

local function new_gzip() return setmetatable({ crc = 0xFFFFFFFF, size = 0 }, Gzip) end

function Gzip:piece(data)
  local out = { self.size == 0 and not self.begun and "\31\139\8\0\0\0\0\0\0\255" or "" }
  self.begun = true
  local crc = self.crc
  for i = 1, #data do crc = crc_of[(crc ~ data:byte(i)) & 255] ~ (crc >> 8) end
  self.crc, self.size = crc, self.size + #data
  for at = 1, #data, 65535 do
    local part = data:sub(at, at + 65534)
    out[#out + 1] = string.pack("<BI2I2", 0, #part, ~#part & 0xFFFF) .. part
  end
  return table.concat(out)
end

function Gzip:finish()
  return self:piece "" .. string.pack("<BI2I2I4I4", 1, 0, 0xFFFF, self.crc ~ 0xFFFFFFFF, self.size & 0xFFFFFFFF)
end

-- Answers -------------------------------------------------------------------------------------------

local reasons = { [200] = "OK", [201] = "Created", [202] = "Accepted", [204] = "No Content", [302] = "Found",
  [400] = "Bad Request", [401] = "Unauthorized", [403] = "Forbidden", [404] = "Not Found", [409] = "Conflict" }

local Answer = {}
Answer.__index = Answer

function Answer:write(data, after)
  local socket = self.connection.socket
  if socket:is_closing() then return end
  socket:write(data, function(problem)
    if problem then return self.connection:lost(problem) end
    if after then after() end
  end)
end

function Answer:timer(seconds, fn)
  local timer = uv.new_timer()
  timer:start(math.floor(seconds * 1000), 0, function()
    close(timer)
    if not self.connection.socket:is_closing() then fn() end
  end)
end

function Answer:finish(keep)
  self.entry.done, self.entry.ended = true, (uv.hrtime() - began) / 1e9
  changed()
  if keep then return self.connection:next_request() end
  close(self.connection.socket)
end

function Answer:broken()
  self.entry.cut = true
  changed()
  local socket = self.connection.socket
  if socket:is_closing() then return end
  if self.how.reset then socket:close_reset() else socket:close() end
end

local function chunk(data) return ("%x\r\n%s\r\n"):format(#data, data) end

function Answer:head(length)
  local how = self.how
  local status = how.status or 200
  local lines = { ("HTTP/1.1 %d %s"):format(status, reasons[status] or "Other") }
  local given = {}
  for name, value in pairs(how.headers or {}) do
    given[name:lower()] = true
    lines[#lines + 1] = name .. ": " .. tostring(value)
  end
  if not given["content-type"] and (how.json ~= nil or how.pieces) then
    lines[#lines + 1] = "Content-Type: " .. (how.pieces and "text/event-stream" or "application/json")
  end
  if how.gzip then lines[#lines + 1] = "Content-Encoding: gzip" end
  lines[#lines + 1] = length and ("Content-Length: %d"):format(length) or "Transfer-Encoding: chunked"
  return table.concat(lines, "\r\n") .. "\r\n\r\n"
end

function Answer:whole()
  local how = self.how
  local body = how.json ~= nil and write_json(how.json) or how.body or ""
  if how.gzip and body ~= "" then
    local gzip = new_gzip()
    body = gzip:piece(body) .. (how.gzip == "cut" and "" or gzip:finish())
  end
  local status = how.status or 200
  local bodyless = self.entry.method == "HEAD"
  local head = self:head(how.length or #body)
  if status == 204 or status == 304 then head = head:gsub("Content%-Length: %d+\r\n", "") end
  if bodyless then body = "" end
  self:write(head .. body, function()
    if how.cut or how.reset then return self:broken() end
    self:finish(bodyless or #body == (how.length or #body))
  end)
end

function Answer:bit_by_bit()
  local how, at = self.how, 0
  local gzip = how.gzip and new_gzip()
  local again
  local function ended()
    if how.every then return again() end
    if how.stall then
      self.entry.stalled = true
      return changed()
    end
    if how.cut or how.reset then return self:broken() end
    local rest = gzip and how.gzip ~= "cut" and chunk(gzip:finish()) or ""
    self:write(rest .. "0\r\n\r\n", function() self:finish(true) end)
  end
  local function put(data, after) self:write(chunk(gzip and gzip:piece(data) or data), after) end
  function again()
    self:timer(how.every[1], function() put(how.every[2], again) end)
  end
  local function more()
    at = at + 1
    local piece = how.pieces[at]
    if piece == nil then return ended() end
    if type(piece) == "number" then return self:timer(piece, more) end
    put(piece, more)
  end
  self:write(self:head(nil), more)
end

local function respond(connection, entry)
  local good, how = pcall(handler, entry, state)
  if not good then how = { status = 500, body = "the handler: " .. tostring(how) } end
  local self = setmetatable({ connection = connection, entry = entry, how = how }, Answer)
  entry.status = how.status or 200
  changed()
  if how.hang then return end
  local function go()
    if how.raw then return self:write(how.raw, function() self:finish(false) end) end
    if how.pieces then return self:bit_by_bit() end
    self:whole()
  end
  if how.delay then return self:timer(how.delay, go) end
  go()
end

-- Requests ------------------------------------------------------------------------------------------

local kept = { "method", "target", "path", "query", "params", "headers", "body", "body_size", "connection", "complaint",
  "operation", "at", "ended", "status", "done", "cut", "stalled", "aborted" }

local function control(connection, path, body)
  local function say(status, text)
    local head = ("HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n"):format(status, #text)
    if not connection.socket:is_closing() then connection.socket:write(head .. text) end
    connection:next_request()
  end
  if path == "/_log" then
    local copies = {}
    for i, entry in ipairs(log) do
      local copy = {}
      for _, name in ipairs(kept) do copy[name] = entry[name] end
      copies[i] = copy
    end
    return say(200, #log == 0 and "[]" or cjson.encode(copies))
  end
  local fn, why = load(body, "=test", "t", tools)
  if not fn then return say(500, why) end
  if path == "/_wait" then
    local function holds(entries)
      local good, result = pcall(fn, entries)
      return not good or result
    end
    if holds(log) then return say(200, "") end
    waiting[#waiting + 1] = { holds = holds, answer = function() say(200, "") end }
    return
  end
  handler, state, log = fn(), {}, {}
  say(200, "")
end

local function unescape(value)
  return (value:gsub("+", " "):gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

local function new_entry(head, number)
  local method, target = head:match "^(%S+) (%S+)"
  local headers = {}
  for name, value in head:gmatch "\r\n([^:\r\n]+): *([^\r\n]*)" do headers[name:lower()] = value end
  local path, query = target:match "^([^?]*)%??(.*)$"
  local params = {}
  for name, value in query:gmatch "([^&=]*)=([^&]*)" do params[unescape(name)] = unescape(value) end
  return { method = method, target = target, path = path:match "/v1(/.*)$" or path, query = query, params = params,
    headers = headers, connection = number, at = (uv.hrtime() - began) / 1e9 }
end

local Connection = {}
Connection.__index = Connection

function Connection:next_request()
  self.entry = nil
  self:parse()
end

-- The client has gone.
function Connection:lost(why)
  close(self.socket)
  local entry = self.entry
  if entry and not entry.done and not entry.cut then
    entry.aborted = why
    changed()
  end
end

-- The body so far: nil while there is more to come.
function Connection:body()
  local head = self.head
  if head.headers["transfer-encoding"] ~= "chunked" then
    local size = math.tointeger(tonumber(head.headers["content-length"] or 0))
    if self.size < size then return nil end
    local input = table.concat(self.input)
    self.input, self.size = { input:sub(size + 1) }, #input - size
    return input:sub(1, size)
  end
  local input, at, parts = table.concat(self.input), 1, {}
  while true do
    local size, start = input:match("^(%x+)[^\r]*\r\n()", at)
    if not size then return nil end
    local n = tonumber(size, 16)
    if #input < start + n + 1 then return nil end
    if n == 0 then
      self.input, self.size = { input:sub(start + 2) }, #input - start - 1
      return table.concat(parts)
    end
    parts[#parts + 1] = input:sub(start, start + n - 1)
    at = start + n + 2
  end
end

function Connection:parse()
  if self.entry then return end
  if not self.head then
    local input = table.concat(self.input)
    local head, rest = input:match "^(.-\r\n)\r\n(.*)$"
    if not head then return end
    self.head = new_entry(head, self.number)
    self.input, self.size = { rest }, #rest
    if self.head.headers.expect then self.socket:write "HTTP/1.1 100 Continue\r\n\r\n" end
  end
  local body = self:body()
  if not body then return end
  local entry = self.head
  self.head, self.entry = nil, entry
  entry.body, entry.body_size = body:sub(1, 1 << 20), #body
  if entry.target:find "^/_" then return control(self, entry.target, body) end
  local good, what = schema.check(entry.method, entry.target, entry.headers, body)
  if good then entry.operation = what else entry.complaint = what end
  local parsed, value = pcall(cjson.decode, body)
  entry.json = parsed and value or nil
  log[#log + 1] = entry
  changed()
  respond(self, entry)
end

local broken_pipe = uv.new_signal()
broken_pipe:start("sigpipe", function() end)
broken_pipe:unref()

local server = uv.new_tcp()
assert(server:bind("127.0.0.1", 0))
server:listen(1024, function()
  local socket = uv.new_tcp()
  server:accept(socket)
  socket:nodelay(true)
  connections = connections + 1
  local connection = setmetatable({ socket = socket, number = connections, input = {}, size = 0 }, Connection)
  socket:read_start(function(problem, data)
    if not data then return connection:lost(problem or "closed") end
    connection.input[#connection.input + 1] = data
    connection.size = connection.size + #data
    connection:parse()
  end)
end)
print(("listening on 127.0.0.1:%d"):format(server:getsockname().port))
io.stdout:flush()
uv.run()
