--- One run: the sandbox of an operation, from its boot to the image that it leaves.

local core = require "bough.core"
local errors = require "bough.error"
local options = require "bough.options"
local process = require "bough.serve.process"
local record = require "bough.serve.record"
local wire = require "bough.contree.wire"

local M = {}

local MOST_LIVE = 256 -- processes of one run at a time
local MOST_ENDED = 64 -- processes that have ended, and are not looked up in the log

---@class bough.serve.sandbox
---@field operation bough.serve.operation
---@field processes table<integer, bough.serve.process> by spid; those that ended long ago are only in the log
---@field last_spid integer
---@field main bough.serve.process?
---@field ending boolean no more processes
---@field private instance bough.instance?
---@field private spec bough.serve.spawn_spec
---@field private image bough.image
local sandbox = {}
local sandbox_meta = { __index = sandbox, __name = "bough.serve.sandbox" }

-- -- what is told of it -----------------------------------------------------------------------------------------

local function first_line(path)
  local file = io.open(path)
  local line = file and file:read "l"
  if file then file:close() end
  return line
end

-- What does not change while this machine runs.
local facts
local function machine_facts()
  facts = facts or {
    kernel = first_line "/proc/sys/kernel/osrelease", machine = core.machine(),
    boot_id = first_line "/proc/sys/kernel/random/boot_id",
  }
  return facts
end

local function init_event(self)
  local known = machine_facts()
  self.operation.log:put(0, "init", {
    started_at = wire.rfc3339(core.time()), runtime_path = "bough", verbose = false, init_pid = 1,
    hostname = self.spec.hostname, kernel = known.kernel, machine = known.machine, boot_id = known.boot_id,
  })
end

local function interface(name, counts)
  local all = {}
  for count in counts:gmatch "%d+" do all[#all + 1] = math.tointeger(tonumber(count)) end
  if #all < 12 then return nil end
  return {
    name = name, rx_bytes = all[1], rx_packets = all[2], rx_errs = all[3], rx_drop = all[4],
    tx_bytes = all[9], tx_packets = all[10], tx_errs = all[11], tx_drop = all[12],
  }
end

-- With a network of its own a sandbox has a loopback device and nothing else; without, those of the host.
local function network_event(self, network)
  local interfaces = {}
  if network == "host" then
    for line in io.lines "/proc/self/net/dev" do
      local name, counts = line:match "^%s*([^%s:]+):%s*(.*)$"
      interfaces[#interfaces + 1] = name and interface(name, counts)
    end
  end
  if not interfaces[1] then interfaces[1] = interface("lo", ("0 "):rep(16)) end
  self.operation.log:put(0, "network", { interfaces = interfaces })
end

-- -- running ----------------------------------------------------------------------------------------------------

local function boot(self, app)
  local spec, limits = self.spec, self.limits
  local network = spec.networking and app.config.network or "none"
  self.instance = self.image:boot {
    files = spec.files, hostname = spec.hostname, network = network, disposable = spec.disposable,
    limits = { disk = spec.disk, memory = limits.instance_memory, pids = limits.instance_pids },
  }
  self.place = {
    instance = self.instance, log = self.operation.log, cwd = self.config.cwd, env = self.config.env, kept = 0,
  }
  init_event(self)
  network_event(self, network)
end

local function next_spid(self)
  return function()
    self.last_spid = self.last_spid + 1
    return self.last_spid
  end
end

-- The image says from now on what this run was told, if it was to be so.
local function config_of(self)
  if not self.spec.preserve_env or next(self.spec.env) == nil then return nil end
  local config = self.config
  for name, value in pairs(self.spec.env) do config.env[name] = value end
  return config
end

local function commit(self)
  if self.spec.disposable then return {} end
  local image = self.instance:commit { command = options.describe(self.spec.argv), config = config_of(self) }
  return { result_image = image.uuid, image_size = image.size }
end

-- All has ended; what was written is read to the end and told.
local function conclude(self)
  while self.starting > 0 do self.changed:wait(1) end -- those that came too late hear of it at once
  if self.main and self.main.ending then self.main:conclude(true) end
  for spid, one in pairs(self.processes) do
    if spid ~= 1 then one:wait_told() end
  end
end

local function shutdown(self, reason)
  self.operation.log:put(0, "shutdown", { stopped_at = wire.rfc3339(core.time()), reason = reason })
end

local function execute(self, app)
  local operation = self.operation
  operation:advance "ASSIGNED"
  boot(self, app)
  self.main = process.start(self.place, self.spec, next_spid(self))
  self.processes[1] = self.main
  self.changed:fire()
  operation:advance "EXECUTING"
  self.main:wait()
  operation:on_cancel(nil)
  self.ending = true
  self.instance:stop(0)
  conclude(self)
  shutdown(self, self.main.ending.timed_out and "timeout" or "job_complete")
  return commit(self)
end

-- Whatever came to pass: nothing of it goes on.
local function clean_up(self)
  self.ending = true
  self.changed:fire()
  local instance = self.instance
  if instance then
    pcall(instance.stop, instance, 0)
    if self.main then self.main:wait() end
    conclude(self)
    instance:close()
  end
end

local function consumed(self, outcome)
  local cpu, memory = self.cpu, self.memory
  if self.main and self.main.ending then
    local ending = self.main.ending
    cpu, memory = cpu + ending.user + ending.system, math.max(memory, ending.max_rss)
    outcome.result = self:result()
  end
  outcome.consumed_cpu, outcome.consumed_memory = cpu, memory
end

local function failure(app, operation, problem)
  if operation.cancelled and (errors.is(problem, "cancelled") or errors.is(problem, "closed")) then
    return { status = "CANCELLED" }
  end
  if errors.is(problem) then return { status = "FAILED", error = problem.message, error_kind = problem.kind } end
  if app.log then app.log { event = "error", operation = operation.uuid, error = tostring(problem) } end
  return { status = "FAILED", error = "internal error" }
end

local function run(self, app)
  local operation = self.operation
  local good, outcome = pcall(execute, self, app)
  operation:on_cancel(nil)
  local problem = not good and outcome or nil
  if good then outcome.status = "SUCCESS" else outcome = failure(app, operation, problem) end
  local clean, trouble = pcall(clean_up, self)
  if not clean and app.log then app.log { event = "error", operation = operation.uuid, error = tostring(trouble) } end
  if not good and self.instance then
    shutdown(self, outcome.status == "CANCELLED" and "cancelled" or "failed")
  end
  consumed(self, outcome)
  self.operation:finish(outcome)
end

--- Begins a run. Does not wait.
---@param app table
---@param operation bough.serve.operation
---@param image bough.image
---@param spec bough.serve.spawn_spec
---@param limits bough.serve.limits
---@return bough.serve.sandbox
function M.start(app, operation, image, spec, limits)
  local self = setmetatable({
    operation = operation, image = image, spec = spec, limits = limits, config = image.config, processes = {},
    last_spid = 0, live = 0, starting = 0, order = {}, ending = false, cpu = 0.0, memory = 0,
    changed = core.condition(),
  }, sandbox_meta)
  operation.sandbox = self
  local task = core.spawn(run, self, app)
  operation:on_cancel(function() task:cancel() end)
  return self
end

--- The main command's InstanceResult so far; nil before it runs.
---@return string? JSON
function sandbox:result()
  return self.main and record.encode(self.main:result()) or nil
end

-- -- more processes ---------------------------------------------------------------------------------------------

-- Those that ended first are looked up in the log first.
local function keep(self, one)
  self.order[#self.order + 1] = one.spid
  if #self.order > MOST_ENDED then
    local spid = table.remove(self.order, 1)
    self.processes[spid]:spill()
    self.processes[spid] = nil
  end
end

local function watch(self, one)
  one:wait()
  self.live = self.live - 1
  one:conclude()
  self.cpu = self.cpu + one.ending.user + one.ending.system
  self.memory = math.max(self.memory, one.ending.max_rss)
  keep(self, one)
end

--- Waits until the main command runs, or never will.
---@param seconds number at most
---@return boolean # whether that is so
function sandbox:settled(seconds)
  local due = core.now() + seconds
  while not self.main and not self.ending do
    local left = due - core.now()
    if left <= 0 then return false end
    self.changed:wait(left)
  end
  return true
end

--- Whether another process may be started now, and why not.
---@return boolean
---@return "over"|"full"|nil
function sandbox:hosts()
  if self.ending or not self.main then return false, "over" end
  if self.live + self.starting >= MOST_LIVE then return false, "full" end
  return true
end

--- Starts one more process. Waits until it runs. Raises what keeps it from that.
---@param spec table of bough.serve.body
---@return integer spid
function sandbox:start(spec)
  self.starting = self.starting + 1
  local good, one = pcall(process.start, self.place, spec, next_spid(self))
  self.starting = self.starting - 1
  self.changed:fire()
  if not good then error(one, 0) end
  self.live = self.live + 1
  self.processes[one.spid] = one
  core.spawn(watch, self, one)
  return one.spid
end

return M
