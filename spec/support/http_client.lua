--- A server of bough.serve.http in a process of its own, and clients that say whatever they like to it.
--
--   local server = http_client.start [[return function(core, http)
--     return { idle_seconds = 1 }, function(request) request:reply(200, { path = request.path }) end
--   end]]
--   local answer = server:get "/x"                   -- by core.http: status, headers, body
--   local answers = server:ask "GET / HTTP/1.1\r\n..."   -- by a socket

local arena = require "spec.support.arena"
local cjson = require "cjson"
local core = require "bough.core"
local daemon = require "spec.support.daemon"
local fixture = require "spec.engine.fixture"
local scratch = require "spec.support.scratch"
local socket = require "cqueues.socket"

local EAGAIN, EPIPE = 11, 32
local PATIENCE = 20 -- seconds
local PIECE = 1 << 16

local M = {}

local host = {}
host.__index = host

--- @param source string see spec/support/http_host.lua
--- @param scheme string? "https" to ask by TLS
--- @param client table? options of core.http
function M.start(source, scheme, client)
  local file = scratch.file(source)
  local log = file .. ".log"
  local command = ("exec %s spec/support/http_host.lua %s %s"):format(arena.lua(), scratch.quote(file),
    scratch.quote(log))
  local self = setmetatable({ daemon = daemon.start(command, "listening on"), log_path = log }, host)
  self.port = self.daemon:port()
  self.url = ("%s://127.0.0.1:%d"):format(scheme or "http", self.port)
  self.client = core.http(client)
  return self
end

function host:stop()
  self.client:close()
  self.daemon:stop()
end

host.__close = host.stop

--- A request by core.http.
function host:request(request)
  request.url = self.url .. request.path
  request.path = nil
  request.follow = 0
  return self.client:request(request)
end

function host:get(path, more)
  local request = { path = path }
  for name, value in pairs(more or {}) do request[name] = value end
  return self:request(request)
end

--- Connections, requests under way, KiB of memory that nobody shares.
function host:counts()
  local counts = cjson.decode(self:get("/_counts").body)
  return math.tointeger(counts[1]), math.tointeger(counts[2]), counts[3]
end

--- The entries of the log.
function host:log()
  local entries = {}
  local file <close> = io.open(self.log_path)
  for line in file and file:lines() or function() end do entries[#entries + 1] = cjson.decode(line) end
  return entries
end

-- Sockets -----------------------------------------------------------------------------------------------

local connection = {}
connection.__index = connection

--- @return table connection with send, finish, read, expect, all, close
function host:connect()
  local raw = assert(socket.connect { host = "127.0.0.1", port = self.port })
  raw:setmode("bn", "bnA")
  raw:setvbuf("no", "no")
  raw:onerror(function(_, _, code) return code end)
  raw:settimeout(0)
  -- cqueues waits with a controller of its own, which stays: so all waiting here is the core's
  fixture.until_true("the connection", function()
    raw:clearerr()
    return raw:connect()
  end)
  return setmetatable({ raw = raw, poll = core.poll(raw:pollfd()) }, connection)
end

--- Sends bytes; returns how many were taken, before the other side had no room for so many seconds, or had gone.
function connection:send(bytes, seconds)
  local sent = 0
  while sent < #bytes do
    local count, why = self.raw:send(bytes, sent + 1, math.min(#bytes, sent + PIECE))
    sent = sent + (count or 0)
    local _, left = self.raw:pending() -- cqueues takes a little more than the socket does
    local give_up = core.now() + (seconds or PATIENCE)
    while why == EAGAIN and left > 0 do
      if core.now() > give_up then return sent - left end
      core.sleep(0.002)
      self.raw:clearerr()
      self.raw:flush("n", 0)
      _, left = self.raw:pending()
    end
    if not count or (why and why ~= EAGAIN) then break end
  end
  return sent
end

--- Sends no more.
function connection:finish() self.raw:shutdown "w" end

--- What comes within so many seconds: bytes, or nil and "eof", "timeout" or "reset".
function connection:read(seconds)
  while true do
    self.raw:clearerr()
    local bytes, why = self.raw:recv(-65536)
    if bytes and #bytes > 0 then return bytes end
    if not why or why == EPIPE then return nil, "eof" end
    if why ~= EAGAIN then return nil, "reset" end
    if not self.poll:wait(seconds or PATIENCE) then return nil, "timeout" end
  end
end

--- Reads until `pattern` has come; returns all, or what there is and how it ended.
function connection:expect(pattern, seconds)
  local got = self.rest or ""
  while not got:find(pattern) do
    local bytes, why = self:read(seconds)
    if not bytes then return got, why end
    got = got .. bytes
  end
  return got
end

--- Everything until the end, and how it ended: "eof", "reset", or "timeout" when nothing came for so long.
function connection:all(seconds)
  local parts = {}
  while true do
    local bytes, why = self:read(seconds)
    if not bytes then return table.concat(parts), why end
    parts[#parts + 1] = bytes
  end
end

function connection:close()
  if not self.raw then return end
  self.poll:close()
  self.raw:close()
  self.raw = nil
end

connection.__close = connection.close

--- The answers in what came: status, headers, body of each; chunked ones are put together.
--- @param text string
--- @param heads boolean? they have no bodies
function M.parse(text, heads)
  local answers, at = {}, 1
  while at <= #text do
    local head_end, body = text:find("\r\n\r\n", at, true)
    if not head_end then break end
    local head = text:sub(at, head_end + 1)
    local answer = { status = math.tointeger(tonumber(head:match "^HTTP/1.1 (%d%d%d)")), headers = {} }
    for name, value in head:gmatch "\r\n([^:\r\n]+): *([^\r\n]*)" do answer.headers[name:lower()] = value end
    at = body + 1
    if heads or answer.status == 100 or answer.status == 204 then
      answer.body, answer.whole = "", true
    elseif answer.headers["transfer-encoding"] then
      local parts = {}
      while true do
        local size, from = text:match("^(%x+)\r\n()", at)
        if not size then break end
        size = tonumber(size, 16)
        parts[#parts + 1] = text:sub(from, from + size - 1)
        at = from + size + 2
        if size == 0 then
          answer.whole = true
          break
        end
      end
      answer.body = table.concat(parts)
    else
      local size = math.tointeger(tonumber(answer.headers["content-length"] or #text - at + 1))
      answer.body = text:sub(at, at + size - 1)
      answer.whole = #answer.body == size
      at = at + size
    end
    local good, value = pcall(cjson.decode, answer.body)
    answer.json = good and value or nil
    if answer.whole then answers[#answers + 1] = answer else answers.part = answer end
  end
  return answers
end

--- Says all of it on a connection of its own. Reads until there are `count` answers, or to the end.
--- @param bytes string
--- @param count integer? default 1
--- @param heads boolean? the answers have no bodies
--- @return table answers, boolean open whether the connection can be used again, string text
function host:ask(bytes, count, heads)
  local c <close> = self:connect()
  c:send(bytes)
  local text, answers = "", {}
  while #answers < (count or 1) do
    local more, why = c:read()
    if not more then
      if why == "timeout" then error("no answer: " .. text, 2) end
      break
    end
    text = text .. more
    answers = M.parse(text, heads)
  end
  if #answers > 0 then
    c:send "GET /_counts HTTP/1.1\r\nHost: x\r\n\r\n"
    local rest = c:expect "%[%d+,%d+,%d+%]$"
    return answers, rest ~= "", text
  end
  return answers, false, text
end

--- Says all of it, and reads to the end, which must come by itself.
--- @return table answers, string text
function host:last(bytes, finish)
  local c <close> = self:connect()
  c:send(bytes)
  if finish then c:finish() end
  local text, ending = c:all()
  if ending == "timeout" then error("the connection stays open after: " .. text, 2) end
  return M.parse(text), text
end

return M
