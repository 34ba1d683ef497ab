--- Jobs as engines hand them out, and many pieces of work at once. All of it goes on in services, so that it also
--- works where ordinary tasks stand still.

local core = require "bough.core"
local errors = require "bough.error"

local M = {}

-- Jobs ---------------------------------------------------------------------------------------------

---@class bough.contree.progress what a job's work tells of itself
---@field done integer
---@field total integer 0 while it is not known

-- What the work may see. If it held the job, that would never be collected.
---@class bough.contree.job_state: bough.contree.progress
---@field over boolean
---@field cond any fires at the end
---@field result any
---@field problem any

---@class bough.contree.job: bough.job
---@field private state bough.contree.job_state
---@field private task bough.task
---@field private op string
local job = {}
local job_meta = { __index = job, __name = "bough.job" }

local function finish(state, good, result)
  if state.over then return end
  state.over = true
  if good then
    if result == nil then result = true end -- nil is for those whose time has passed
    state.result = result
  else
    state.problem = result
  end
  state.cond:fire()
end

local function body(state, fn)
  state.begun = true
  finish(state, pcall(fn, state))
end

--- The result when it is over, nil when `seconds` have passed first; raises the work's failure. Waits. Repeatable.
---@param seconds number?
---@return any
function job:wait(seconds)
  local state = self.state
  local due = seconds and core.now() + seconds
  while not state.over do
    local left = due and due - core.now()
    if left and left <= 0 then return nil end
    state.cond:wait(left)
  end
  if state.problem ~= nil then error(state.problem, 0) end
  return state.result
end

---@return integer done
---@return integer total 0 while it is not known
function job:progress() return self.state.done, self.state.total end

--- Cancels; does nothing when it is over. Never waits.
function job:close()
  local state = self.state
  if state.over then return end
  self.task:cancel()
  if not state.begun then
    finish(state, false, errors.new("cancelled", self.op, nil, "it was closed before it had begun"))
  end
end

job_meta.__close = job.close

function job_meta:__tostring()
  return ("job %s (%s)"):format(self.op, self.state.over and "over" or "under way")
end

--- Starts work that goes on whether anybody waits for it or not.
---@param op string for messages
---@param fn fun(progress: bough.contree.progress): any its result
---@return bough.contree.job
function M.job(op, fn)
  local state = { done = 0, total = 0, over = false, cond = core.condition() }
  return setmetatable({ op = op, state = state, task = core.service(body, state, fn) }, job_meta)
end

-- Many at once ---------------------------------------------------------------------------------------

-- Cancels what is still under way, and waits until it has ended.
local function disband(crew)
  for _, task in ipairs(crew) do task:cancel() end
  for _, task in ipairs(crew) do pcall(task.wait, task) end
end

local crew_meta = { __close = disband }

--- Calls `fn` with 1 to `count`, several at a time. The first failure cancels the others and is raised. Waits.
---@param count integer
---@param width integer how many at a time
---@param fn fun(i: integer)
function M.each(count, width, fn)
  local last, failure = 0, nil
  local crew <close> = setmetatable({}, crew_meta)
  local function work()
    while not failure and last < count do
      last = last + 1
      local good, problem = pcall(fn, last)
      if not good and not failure then
        failure = { problem }
        for _, task in ipairs(crew) do
          if task ~= core.current() then task:cancel() end
        end
      end
    end
  end
  if math.min(count, width) <= 1 then
    work()
  else
    for i = 1, math.min(count, width) do crew[i] = core.service(work) end
    for _, task in ipairs(crew) do
      local good, problem = pcall(task.wait, task)
      if not good and not failure then error(problem, 0) end
    end
  end
  if failure then error(failure[1], 0) end
end

return M
