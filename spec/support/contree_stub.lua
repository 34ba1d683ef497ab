--- A ConTree service on loopback that says what a test tells it to, in a process of its own.
--
--   local stub = contree_stub.start()
--   stub:handle [[return function(request, state) return { json = { images = {} } } end]]
--   local api = contree_api.new { url = stub.url, token = "secret-token" }
--   ...
--   stub:check() -- raises for the first request that the API does not know
--
-- The function runs in the server, spec/support/contree_stub_server.lua, which says what it gets and may return. Each
-- request is held against spec/support/contree_schema.lua.

local arena = require "spec.support.arena"
local cjson = require "cjson"
local core = require "bough.core"
local daemon = require "spec.support.daemon"

local stub = {}
stub.__index = stub

--- @param opts { base: string? }? `base`: the prefix of the path, default "/sandboxes"
function stub.start(opts)
  local command = ("%s spec/support/contree_stub_server.lua"):format(arena.lua())
  local self = setmetatable({ daemon = daemon.start(command, "listening on") }, stub)
  self.port = self.daemon:port()
  self.host = ("127.0.0.1:%d"):format(self.port)
  self.root = "http://" .. self.host
  self.url = self.root .. (opts and opts.base or "/sandboxes")
  self.client = core.http()
  return self
end

local function control(self, path, body)
  local answer = self.client:request {
    url = self.root .. path, method = "POST", body = body, max_bytes = 1 << 28, stall_timeout = math.huge,
  }
  if answer.status ~= 200 then error(answer.body, 3) end
  return answer.body
end

--- Sets the function, given as the text of a chunk that returns it, and forgets the log and the state.
function stub:handle(source) control(self, "/_handle", source) end

--- The requests since then: method, target, path (below /v1), query (raw), params (decoded), headers (names in lower
--- case), body, connection (a number), complaint (of the schema, or nil), at and ended (seconds), done or aborted.
function stub:log()
  local log = cjson.decode(control(self, "/_log", ""))
  for _, entry in ipairs(log) do entry.connection = math.tointeger(entry.connection) end
  return log
end

--- Waits until the condition holds: the text of a chunk that gets the log, live, and returns a boolean.
function stub:wait(source) control(self, "/_wait", source) end

--- Raises for the first request that the API does not know.
function stub:check()
  for _, entry in ipairs(self:log()) do
    if entry.complaint then error(entry.complaint, 2) end
  end
end

function stub:stop()
  self.client:close()
  self.daemon:stop()
end

return stub
