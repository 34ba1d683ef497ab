--- The driver of a ConTree service: what engines are made of (engine.lua), over its REST API.
--
-- Images, files and looking into images are methods from modules of their own; what runs commands shares a hub.

local core = require "bough.core"
local errors = require "bough.error"
local chores = require "bough.contree.chores"
local files = require "bough.contree.files"
local gate = require "bough.contree.gate"
local images = require "bough.contree.images"
local inspect = require "bough.contree.inspect"
local request = require "bough.contree.request"
local runs = require "bough.contree.run"
local sandboxes = require "bough.contree.sandbox"
local users = require "bough.contree.users"

local M = {}

local raise = errors.raise

local PATIENCE = 5 -- seconds that `close` waits for what it has cancelled
local DATABASE = 1 << 20 -- bytes of an image's /etc/passwd that are read

-- What this service cannot do, by the names of options and methods.
local unsupported = {
  "attach", "cache", "commit of a running instance", "compact", "export", "files: symlinks, mtime, empty directories",
  "gc", "import of local images", "limits.cpu", "limits.files", "limits.memory", "limits.pids", 'network = "host"',
  "pty", "remove", "resize",
}

-- The hub --------------------------------------------------------------------------------------------

---@class bough.contree.hub
local hub = {}
local hub_meta = { __index = hub, __name = "bough.contree.hub" }

-- What the service allows; {} where it does not say.
local function ask_limits(self)
  local good, identity = pcall(self.api.whoami, self.api)
  if good then return identity.limits end
  local problem = identity
  if errors.is(problem) and problem.status and problem.status ~= 401 and problem.status ~= 403 then
    self.api:log("warning", "the service does not tell its limits: " .. problem.message, {})
    return {}
  end
  error(problem, 0)
end

-- Asked for once, however many want to know at the same time. Only in a service.
local function limits_of(self)
  while not self.limits do
    if self.asking then
      self.landed:wait()
    else
      self.asking = true
      local good, limits = pcall(ask_limits, self)
      self.asking = nil
      self.landed:fire()
      if not good then error(limits, 0) end
      self.limits = limits
      if not self.is_bounded then
        self.is_bounded = true
        self.gate:set(math.tointeger(limits.instance_max_concurrency))
      end
    end
  end
  return self.limits
end

--- Fills in what a request lacks: who runs the command, and limits that are the service's or the engine's. Waits.
---@param body table
---@param uuid string
---@param user string?
---@return table body
function hub:complete(body, uuid, user)
  local known = { disk = self.disk }
  known.uid, known.gid = self.users:find(uuid, user)
  local is_needed = body.image ~= nil and not (body.timeout and self.is_bounded)
  if is_needed or self.limits then known.longest = limits_of(self).instance_max_timeout end
  return request.complete(body, known)
end

-- The driver -----------------------------------------------------------------------------------------

---@class bough.contree.driver
---@field api bough.contree.api
---@field private hub bough.contree.hub
local driver = {}

--- Begins a run. Waits until the command runs, unless `spec.eager`.
---@param uuid string
---@param spec table from bough.options
---@return bough.run
function driver:start(uuid, spec) return runs.start(self.hub, uuid, spec) end

--- Begins a sandbox that hosts processes. Does not wait.
---@param uuid string
---@param spec table
---@return bough.sandbox
function driver:boot(uuid, spec) return sandboxes.boot(self.hub, uuid, spec) end

--- Makes an image that has the files. Does not wait.
---@param uuid string
---@param staged bough.contree.staged
---@param opts { tag: string?, command: string? }
---@return bough.job job its result a row
function driver:put_files(uuid, staged, opts) return runs.put_files(self.hub, uuid, staged, opts) end

--- Raises `unsupported` for what a run, a sandbox or a process cannot have here. Makes no request.
---@param spec table from bough.options
---@param op string
function driver.check(_, spec, op)
  request.check(spec, op)
  if spec.tag then images.check_tag(spec.tag, op) end
end

--- Refuses: the service removes nothing.
function driver.remove()
  raise("unsupported", "remove", "the service keeps images until nobody has used them for months")
end

--- Refuses.
function driver.gc() raise("unsupported", "gc", "nothing can be removed here: untagged images go after some months") end

--- Why layers are not merged on demand.
driver.never_compacts = "how images are kept is the service's own affair"

local function whole_numbers(from)
  local all = {}
  for name, value in pairs(from or {}) do all[name] = math.tointeger(value) or value end
  return all
end

--- Who we are there, and what we may. Waits.
---@param opts { refresh: boolean? }? refresh: asks again
---@return { url: string, permissions: table<string, boolean>, limits: table<string, integer>, operations:
---  table<string, integer>, token_uuid: string?, token_expiration: integer?, unsupported: string[] } info operations:
---  how many run; token_expiration: seconds since the epoch
function driver:info(opts)
  opts = errors.check_keys("info", opts, { "refresh" })
  local identity = self.api:whoami(opts.refresh)
  local permissions = {}
  for name, value in pairs(identity.permissions) do permissions[name] = value == true end
  return {
    url = self.api.url, permissions = permissions, limits = whole_numbers(identity.limits),
    operations = whole_numbers(identity.operations_stat), token_uuid = identity.token_uuid,
    token_expiration = math.tointeger(identity.token_expiration),
    unsupported = { table.unpack(unsupported) },
  }
end

local function wait_landed(self)
  local due = core.now() + PATIENCE
  while next(self.flights) and core.now() < due do self.landed:wait(due - core.now()) end
end

--- Cancels what still runs, waits for that, at most 5 seconds, and lets go of all connections. Whoever waits for
--- something of it gets `closed`. Twice does nothing.
function driver:close()
  local own = self.hub
  if own.closed then return end
  own.closed = errors.new("closed", nil, nil, "the engine is closed")
  for flight in pairs(own.flights) do flight:cancel(own.closed) end
  local good, problem = pcall(wait_landed, own)
  self.api:close()
  if not good then error(problem, 0) end
end

-- The beginning of a file in an image, of which nobody knows how long it is.
local function beginning(self, uuid, path)
  local file <close> = self:open(uuid, path)
  local parts, size = {}, 0
  while size < DATABASE do
    local piece = file:read(DATABASE - size)
    if not piece then break end
    parts[#parts + 1] = piece
    size = size + #piece
  end
  return table.concat(parts)
end

local methods = {}
for _, part in ipairs { images.methods, files.methods, inspect.methods, driver } do
  for name, method in pairs(part) do methods[name] = method end
end

local driver_meta = { __index = methods, __name = "bough.contree.driver", __close = driver.close }

function driver_meta:__tostring() return ("contree driver for %s"):format(self.api.host) end

--- Makes a driver over an API. Makes no request.
---@param api bough.contree.api
---@param opts { max_concurrency: integer?, bounded: boolean?, disk: integer? }? max_concurrency: operations under way
---  at once; without a word what the service allows, with `bounded` as many as one likes; disk: bytes that a sandbox
---  may change, where a run says nothing
---@return bough.contree.driver
function M.new(api, opts)
  opts = opts or {}
  local self = setmetatable({ api = api }, driver_meta)
  local weak = setmetatable({ self }, { __mode = "v" })
  self.hub = setmetatable({
    api = api, flights = {}, landed = core.condition(), gate = gate.new(opts.max_concurrency),
    is_bounded = opts.bounded or opts.max_concurrency ~= nil, disk = opts.disk,
    chores = chores.new(function(problem)
      api:log("warning", "work in the background failed: " .. tostring(problem), {})
    end),
    users = users.new(function(uuid, path)
      return beginning(weak[1] or setmetatable({ api = api }, driver_meta), uuid, path)
    end),
  }, hub_meta)
  return self
end

return M
