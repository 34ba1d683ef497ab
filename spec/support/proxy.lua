--- An HTTP server on loopback that misbehaves as told, with or without a real one behind it.
--
--   local server = proxy.start { upstream = "127.0.0.1:5000" }
--   server:handle [[return function(request, state) return { forward = true, cut_at = 100 } end]]
--
-- The function runs in the server, spec/support/proxy_server.lua, which says what it may return. It is called
-- for each request; `state` is a table that stays.

local arena = require "spec.support.arena"
local cjson = require "cjson"
local core = require "bough.core"
local daemon = require "spec.support.daemon"

local proxy = {}
proxy.__index = proxy

--- @param opts { upstream: string? }?
function proxy.start(opts)
  local command = ("%s spec/support/proxy_server.lua %s"):format(arena.lua(), opts and opts.upstream or "")
  local self = setmetatable({ daemon = daemon.start(command, "listening on") }, proxy)
  self.port = self.daemon:port()
  self.host = ("127.0.0.1:%d"):format(self.port)
  self.url = "http://" .. self.host
  self.client = core.http()
  return self
end

local function control(self, path, body)
  local answer = self.client:request {
    url = self.url .. path, method = "POST", body = body, max_bytes = 1 << 28, stall_timeout = math.huge,
  }
  if answer.status ~= 200 then error(answer.body, 3) end
  return answer.body
end

--- Sets the function, given as the text of a chunk that returns it, and forgets the log.
function proxy:handle(source) control(self, "/_handle", source) end

--- The requests since then: method, path, headers (names in lower case), body (up to 1 MiB), body_size,
--- connection (a number), sent (bytes of body), done or aborted.
function proxy:log()
  local log = cjson.decode(control(self, "/_log", ""))
  for _, entry in ipairs(log) do
    entry.sent, entry.connection = math.tointeger(entry.sent), math.tointeger(entry.connection)
    entry.body_size = math.tointeger(entry.body_size)
  end
  return log
end

--- Waits until the condition holds: the text of a chunk that gets the log, live, and returns a boolean.
function proxy:wait(source) control(self, "/_wait", source) end

--- Lets all gated answers go on by one piece.
function proxy:go() control(self, "/_go", "") end

function proxy:stop()
  self.client:close()
  self.daemon:stop()
end

return proxy
