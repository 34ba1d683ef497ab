--- Instances: a sandbox that is running and hosts processes, several at once.
--
-- The object is a userdata of the core (its life, state and fields); what its methods do is here, over the handle that
-- a driver's `boot` gave: started, exec, wait, commit, stop, close, and the fields hosts, live, stopped, closed.

local core = require "bough.core"
local check = require "bough.check"
local defaults = require "bough.defaults"
local errors = require "bough.error"
local live = require "bough.live"
local options = require "bough.options"

local M = {}

local raise, quote = errors.raise, errors.quote

local GRACE = 10 -- seconds between asking processes to end and ending them

local parts = setmetatable({}, { __mode = "k" }) -- instance -> what it is made of

---@class bough.instance
---@field image bough.image what it was booted from
---@field uuid string of that image
---@field state "running"|"stopping"|"stopped"|"closed"
---@field live integer processes that have not ended
---@field timed_out boolean its time limit has ended it
---@field oom boolean its memory limit has killed in it; known when it has stopped
local methods = {}

local function part_of(self, op)
  local part = parts[self]
  if not part then
    raise("invalid", op, "called on %s instead of an instance: write instance:%s(...)", quote(self), op)
  end
  if self.state == "closed" then raise("closed", op, "the instance is closed") end
  return part
end

--- Starts a process in the sandbox. Waits until it runs; what is wrong with it (no such program, directory, user)
--- raises. `timeout` ends this process and what it started, not the others.
---@param command string|table shell line, or options with the command in the array part
---@param opts table? with a shell line
---@param within { eager: boolean? }? `eager`: does not wait for the start; `wait` tells what was wrong
---@return bough.process
function methods:exec(command, opts, within)
  local part = part_of(self, "exec")
  local spec, policy = options.spec(command, opts, {
    op = "exec", defaults = part.defaults, image = part.config, live = true,
    inside = "give it to boot",
  })
  spec.eager = within ~= nil and within.eager or nil
  -- a process keeps its instance: one that nobody else holds does not end under it
  return live.start(part.handle, spec, policy, "exec", function() return nil, self end)
end

--- The same under the name that sessions and images have for it.
methods.popen = methods.exec

--- Makes an image of what the processes have changed so far. While it runs: all of them stand still meanwhile, so that
--- the image is of one moment: every write(2) that had returned is in it, and nothing that a program still holds in its
--- own memory. The instance goes on, and the next commit has the same parent: the image it was booted from. After
--- `stop`: the final state, and again the same image. Waits.
---@param opts { tag: string?, command: string?, config: bough.image_defaults? }? command: what made it, for people;
---  config: what the image says about runs, in place of what the one it was booted from says
---@return bough.image
function methods:commit(opts)
  local part = part_of(self, "commit")
  opts = errors.check_keys("commit", opts, { "tag", "command", "config" })
  local tag = check.tag(opts.tag, "commit")
  if opts.command ~= nil and type(opts.command) ~= "string" then
    raise("invalid", "commit", "command must be a string, got %s", quote(opts.command))
  end
  local config = opts.config ~= nil and defaults.write(opts.config, "commit") or nil
  local image = part.wrap(part.handle:commit { tag = tag, command = opts.command, config = config })
  if tag and image.tag ~= tag then image = image:tag_as(tag) end
  return image
end

--- Ends the processes, SIGTERM first and SIGKILL for those still there after `grace` seconds, and then the sandbox.
--- What they have changed waits for `commit`, until `close`. Again: does nothing. Waits.
---@param grace number? default 10; 0: kills at once
---@return bough.instance self
function methods:stop(grace)
  local part = part_of(self, "stop")
  if grace ~= nil and (type(grace) ~= "number" or grace ~= grace or grace < 0) then
    raise("invalid", "stop", "grace must be a number of seconds, got %s", quote(grace))
  end
  part.handle:stop(math.min(grace or GRACE, 1e9))
  return self
end

--- Makes the object for a sandbox that a driver has begun to boot. Waits until it is there.
---@param handle table
---@param part { image: bough.image, context: bough.context, defaults: table, config: table?,
---  wrap: fun(row: table): bough.image }
---@return bough.instance
function M.new(handle, part)
  local good, problem = pcall(handle.started, handle)
  if not good then
    handle:close()
    if errors.is(problem) and problem.op == nil then problem.op = "boot" end
    error(problem, 0)
  end
  local instance = core.instance(handle, methods, { image = part.image, uuid = part.image.uuid })
  part.handle = handle
  parts[instance] = part
  part.context.instances[instance] = true
  return instance
end

--- Adds a method to all instances.
---@param name string
---@param method function
function M.add(name, method) methods[name] = method end

local manager = {}
local meta = { __name = "bough.instances", __index = manager }

local all_of = setmetatable({}, { __mode = "k" }) -- manager -> context

--- The instances of this engine that are running or stopped, in no order.
---@return bough.instance[]
function manager:list()
  local list = {}
  for instance in pairs(all_of[self].instances) do
    if instance.state ~= "closed" then list[#list + 1] = instance end
  end
  return list
end

function meta:__tostring() return ("instances (%d)"):format(#self:list()) end

--- `engine.instances`.
---@param context bough.context
---@return bough.instances
function M.manager(context)
  local self = setmetatable({}, meta)
  all_of[self] = context
  return self
end

return M
