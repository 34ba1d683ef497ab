--- `bough.serve`: the embedded engine behind the REST API of ConTree.
--
-- One server has one store, which is one project. It runs in tasks on the caller's loop.

local core = require "bough.core"
local engine = require "bough.engine"
local errors = require "bough.error"
local http = require "bough.serve.http"
local auth = require "bough.serve.auth"
local configuration = require "bough.serve.config"
local logging = require "bough.serve.log"
local routes = require "bough.serve.routes"

local M = {}

local HURRY = 0.1 -- seconds between two looks at whether the end is wanted sooner
local LAST_WORDS = 5 -- seconds for answers to get out once nothing runs any more
local LAST_WORD = 1 -- the same when there is no time left

---@class bough.serve.options
---@field home string? the store; default: as for `bough.open`
---@field engine bough.engine? one that is open, instead of `home`; it stays open
---@field keeper string? as for `bough.open`
---@field spare integer? as for `bough.open`
---@field address string? numeric, or "localhost"; default "127.0.0.1"; any but the machine's own needs `cert`, `key`
---  and tokens
---@field port integer? default 8080; 0: any free one
---@field base_path string? "/sandboxes": endpoints are there too, below "/sandboxes/v1"
---@field tokens (string|table)[]? who may come in: tokens, or { name =, token = or sha256 =, permissions = { "list",
---  ... }, limits = { ... }, expires = }; default: one made at random, in `server.token`
---@field token_file string? a file with them instead, which nobody else can read
---@field project string? requests must name it in their header Project
---@field cert string? certificates in PEM, the server's own first
---@field key string? its key in PEM
---@field key_password string?
---@field images string[]? images that are there from the start: "busybox", or whatever `images:use` takes
---@field network "none"|"host"|nil what a run has that asks for a network; default "none"
---@field limits table? of tokens that say nothing else: see bough.serve.limits
---@field registries string[]? hosts that images may be imported from; default: all but this machine's own
---@field insecure_registries string[]? hosts that may lack TLS, or a certificate that anybody vouches for; this
---  machine's own are allowed by being here
---@field log string|file*|function|nil where a line of JSON goes for each request and each turn of events: a path, a
---  Lua file, or a function that is given the table and must not wait; default: nowhere
---@field grace number? seconds that `stop` waits for what runs; default 10
---@field connections integer? at a time; default 4096

---@class bough.server
---@field url string "http://127.0.0.1:8080/sandboxes": what clients are told
---@field address string
---@field port integer
---@field token string? the one that was made at random
---@field engine bough.engine
---@field state "serving"|"stopping"|"closed"
local server = {}
local server_meta = { __index = server, __name = "bough.server" }

function server_meta:__tostring() return ("server %s (%s)"):format(self.url, self.state) end

local function access(log, entry)
  local token = entry.token
  log:put {
    event = "request", request = entry.id, token = token and token.name, peer = entry.peer, method = entry.method,
    path = entry.path, status = entry.status, bytes = entry.bytes_out, bytes_in = entry.bytes_in,
    seconds = math.floor(entry.seconds * 1e6 + 0.5) / 1e6, gone = entry.gone,
  }
end

local function report(log, level, message, fields)
  local event = { event = level, message = message }
  for name, value in pairs(fields or {}) do event[name] = value end
  log:put(event)
end

-- Undoes what was done, the last first.
local function new_undo()
  local steps = {}
  return setmetatable({ add = function(step) steps[#steps + 1] = step end, keep = function() steps = {} end }, {
    __close = function()
      for i = #steps, 1, -1 do pcall(steps[i]) end
    end,
  })
end

local function open_engine(config)
  if config.engine then
    local meta = getmetatable(config.engine)
    if type(meta) ~= "table" or meta.__name ~= "bough.engine" then
      errors.raise("invalid", "serve", "engine must be one that bough.open gave, got %s", errors.quote(config.engine))
    end
    return config.engine
  end
  return engine.open { home = config.home, keeper = config.keeper, spare = config.spare }
end

--- Starts a server. Waits until it listens. Raises `invalid` naming the option, `denied` for a token file that others
--- can read, `busy` when another server has the store, `unsupported` without libmicrohttpd.
---@param opts bough.serve.options?
---@return bough.server
function M.start(opts)
  local undo <close> = new_undo()
  local config = configuration.read(opts)
  local log = logging.new(config.log)
  undo.add(function() log:close() end)
  local listener = http.listen {
    address = config.address, port = config.port, cert = config.cert, key = config.key,
    key_password = config.key_password, connections = config.connections,
    log = function(entry) access(log, entry) end,
    report = function(level, message, fields) report(log, level, message, fields) end,
  }
  undo.add(function() listener:close() end)
  local operations = require "bough.serve.operations" -- needs what the listener has found to be there
  local box = open_engine(config)
  if not config.engine then undo.add(function() box:close() end) end
  local info = box:info()
  if not info.scratch then
    errors.raise("unsupported", "serve", "engine: only the embedded one can be served, not %s", tostring(box))
  end
  local app = {
    box = box, config = config, log = function(event) log:put(event) end, scratch = info.scratch,
    tagging = core.queue(),
  }
  app.auth = auth.new(config, app.log)
  for _, name in ipairs(config.images) do box.images:use(name) end
  app.journal = core.journal(info.home .. "/serve.db")
  undo.add(function() app.journal:close() end)
  app.operations = operations.open(app)
  undo.add(function() app.operations:close() end)
  listener:serve(routes.new(app))
  undo.keep()
  local self = setmetatable({
    url = listener.url .. config.base_path, address = listener.address, port = listener.port,
    token = config.generated, engine = box, state = "serving", app = app, listener = listener, log = log,
    ended = core.condition(),
  }, server_meta)
  log:put { event = "start", url = self.url, home = info.home }
  return self
end

-- -- the end ---------------------------------------------------------------------------------------------------

-- Waits until nothing runs, or until `stop_at`, which a second `stop` may bring nearer; what runs then is cancelled.
local function drain(self)
  local operations = self.app.operations
  repeat
    local left = self.stop_at - core.now()
  until left <= 0 or operations:drain(math.min(left, HURRY))
  operations:close()
end

local function finish(self)
  self.listener:stop(math.max(LAST_WORD, math.min(self.stop_at - core.now(), LAST_WORDS)))
  self.app.journal:close()
  if not self.app.config.engine then self.engine:close() end
  self.log:put { event = "stop" }
  self.log:close()
end

local function end_it(self)
  -- takes no more requests from here on
  local _ <close> = core.spawn(self.listener.stop, self.listener, self.stop_at - core.now() + LAST_WORDS)
  local good, problem = pcall(drain, self)
  local closed, trouble = pcall(finish, self)
  self.state = "closed"
  self.ended:fire()
  if not good then error(problem, 0) end
  if not closed then error(trouble, 0) end
end

--- Ends the server: no new connections and requests; what runs may end by itself for `grace` seconds, is then
--- cancelled, and all that happened is in the store. Waits. Called again meanwhile with less, it ends that much sooner.
---@param grace number? seconds; default: the option
function server:stop(grace)
  if self.state == "closed" then return end
  local stop_at = core.now() + (grace or self.app.config.grace)
  if not self.stop_at or stop_at < self.stop_at then self.stop_at = stop_at end
  if self.state == "serving" then
    self.state = "stopping"
    self.ending = core.spawn(end_it, self)
  end
  self.ending:wait()
end

--- The same at once.
function server:close() self:stop(0) end

server_meta.__close = server.close

--- Waits until the server has ended; false when `seconds` have passed first.
---@param seconds number? default: for ever
---@return boolean
function server:wait(seconds)
  local over = seconds and core.now() + seconds
  while self.state ~= "closed" do
    local left = over and over - core.now()
    if left and left <= 0 then return false end
    self.ended:wait(left)
  end
  return true
end

--- Opens the log's file anew, for whoever has moved it away.
function server:reopen_log() self.log:reopen() end

return M
