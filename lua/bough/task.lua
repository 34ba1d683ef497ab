--- Several tasks at once: all, race, completed, scope.
--
-- A task (`bough.spawn`) is a coroutine that the loop runs. What is here starts several, and never lets
-- one outlive the call that started it: whichever way a call is left, by its end, an error, `break`,
-- cancellation or a deadline, its unfinished tasks are cancelled and joined first. All of it works inside
-- tasks and outside, where it drives the loop.

local core = require "bough.core"

local M = {}

local function fail(kind, op, fmt, ...)
  error(core.error(kind, fmt:format(...), { op = op }), 0)
end

local function is_task(value)
  local meta = getmetatable(value)
  return type(value) == "userdata" and type(meta) == "table" and meta.__name == "bough.task"
end

local function is_callable(value)
  if type(value) == "function" then return true end
  local meta = getmetatable(value)
  return type(meta) == "table" and meta.__call ~= nil
end

-- Whether a wait was cut short from outside, and may be begun again to clean up.
local function is_interruption(problem)
  return core.is_error(problem) and (problem.kind == "cancelled" or problem.kind == "timeout")
end

-- A group owns tasks and joins them when it is closed. ---------------------------------------------

---@class bough.scope
---@field private watch any tells which task has finished
---@field private live table<bough.task, true> the unfinished ones
---@field private failed bough.task[] those that ended in an error
---@field private state "open"|"cancelled"|"closed"
local scope = {}

local scope_meta = { __index = scope, __name = "bough.scope" }

local function new_scope()
  return setmetatable({ watch = core.watch(), live = {}, failed = {}, state = "open" }, scope_meta)
end

local function note(self, task)
  self.live[task] = nil
  if task.status == "failed" and not task.observed then
    self.failed[#self.failed + 1] = task
  end
  return task
end

local function add(self, task)
  self.watch:add(task)
  self.live[task] = true
  return task
end

-- The next task to finish, nil when there are no more.
local function next_task(self)
  local task = self.watch:next()
  return task and note(self, task)
end

--- Starts a task in the scope.
---@param fn function
---@param ... any its arguments
---@return bough.task
function scope:spawn(fn, ...)
  if self.state ~= "open" then
    fail("closed", "scope:spawn", "the scope is %s", self.state)
  end
  -- A scope that lives long forgets what is finished.
  local finished = self.watch:take()
  while finished do
    note(self, finished)
    finished = self.watch:take()
  end
  return add(self, core.spawn(fn, ...))
end

--- Cancels every task of the scope, and lets it start no more.
function scope:cancel()
  if self.state == "open" then self.state = "cancelled" end
  for task in pairs(self.live) do task:cancel() end
end

local function first_failure(self)
  for _, task in ipairs(self.failed) do
    if not task.observed then return task end
  end
end

-- Joins all tasks. `problem` is the error that is on its way, nil when there is none: then the first
-- failure of a task is raised. To be interrupted means to cancel what is left, and to go on joining.
local function join(self, problem)
  if self.state == "closed" then return end
  if problem ~= nil then self:cancel() end
  local interruption, failure
  while true do
    local good, task = pcall(next_task, self)
    if good then
      if not task then break end
      if problem == nil and not failure and first_failure(self) then
        failure = first_failure(self)
        self:cancel()
      end
    elseif is_interruption(task) then
      interruption = task
      self:cancel()
    else
      -- Nobody can be joined here: in a coroutine inside a task, or nothing could end the wait.
      self:cancel()
      self.state = "closed"
      if problem ~= nil then return end -- the first error counts
      error(task, 0)
    end
  end
  self.state = "closed"
  if interruption then
    if interruption.cause == nil then interruption.cause = problem end
    error(interruption, 0)
  end
  failure = failure or (problem == nil and first_failure(self) or nil)
  if failure then failure:wait() end
end

--- Joins the tasks of the scope; raises the first error among those that nobody waited for. Waits.
--- `local s <close> = bough.scope()` does this at the end of the block, and cancels first when an error
--- ends it.
function scope:close() join(self) end

scope_meta.__close = join

function scope_meta:__tostring()
  local count = 0
  for _ in pairs(self.live) do count = count + 1 end
  return ("scope (%s, %d tasks)"):format(self.state, count)
end

--- A scope that no task outlives: leaving it joins its tasks, leaving it by an error cancels them first.
--- Without a function, returns the scope: `local s <close> = bough.scope()`. Waits.
---@param fn (fun(s: bough.scope, ...): ...)?
---@param ... any arguments for fn
---@return any ... results of fn, or the scope
function M.scope(fn, ...)
  if fn == nil then return new_scope() end
  if not is_callable(fn) then fail("invalid", "scope", "expected a function, not %s", type(fn)) end
  local s <close> = new_scope()
  return fn(s, ...)
end

-- Lists of work -----------------------------------------------------------------------------------

-- Checks a list of functions and tasks; returns its length and how many may run at once.
local function check(op, list, options)
  if type(list) ~= "table" then
    fail("invalid", op, "expected a table of functions and tasks, not %s", type(list))
  end
  local count = list.n or #list
  if math.type(count) ~= "integer" or count < 0 then
    fail("invalid", op, "n must be the number of items, not %s", tostring(count))
  end
  local seen = {}
  for i = 1, count do
    local item = list[i]
    if is_task(item) then
      if seen[item] then
        fail("invalid", op, "item %d is the same task as item %d", i, seen[item])
      end
      seen[item] = i
    elseif not is_callable(item) then
      fail("invalid", op, "item %d is neither a function nor a task, but %s", i, type(item))
    end
  end
  for key in pairs(list) do
    if math.type(key) == "integer" then
      if key < 1 or key > count then
        fail("invalid", op, "item %d is beyond the end of the list, which has %d", key, count)
      end
    elseif key ~= "n" and not options[key] then
      local known = {}
      for name in pairs(options) do known[#known + 1] = name end
      table.sort(known)
      fail("invalid", op, "unknown option %q%s", tostring(key),
        known[1] and ": known are " .. table.concat(known, ", ") or "")
    end
  end
  local limit = list.limit
  if limit ~= nil and (math.type(limit) ~= "integer" or limit < 1) then
    fail("invalid", op, "limit must be a positive integer, not %s", tostring(limit))
  end
  return count, limit or math.huge
end

-- Starts the items of a list one after another, and knows the position of each.
local function starter(group, list, count)
  local position, last = {}, 0
  local function start()
    if last == count then return end
    last = last + 1
    local item = list[last]
    local task = add(group, is_task(item) and item or core.spawn(item))
    position[task] = last
  end
  return start, position
end

local function start_all(group, list, count, limit)
  local start, position = starter(group, list, count)
  for _ = 1, math.min(limit, count) do start() end
  return start, position
end

-- A second table is a habit from elsewhere, and would be passed over in silence.
local function one_table(op, ...)
  if select("#", ...) > 0 then
    fail("invalid", op, "takes one table: options go beside the functions, %s{ f, g, limit = 2 }", op)
  end
end

---@class bough.outcome
---@field ok boolean
---@field value any first result
---@field err any

--- Runs all items at once and returns their first results, in order. The first error cancels and joins
--- the others, and is raised. Waits.
---@param list { [integer]: function|bough.task, n: integer?, limit: integer?, settle: boolean? }
--- `limit`: so many at a time; `settle`: no error is raised, the results are `bough.outcome`s
---@return any[] results with field `n`
function M.all(list, ...)
  one_table("all", ...)
  local count, limit = check("all", list, { limit = true, settle = true })
  local group <close> = new_scope()
  local start, position = start_all(group, list, count, limit)
  local settle = list.settle
  local results = { n = count }
  for task in next_task, group do
    local i = position[task]
    if settle then
      local good, value = pcall(task.wait, task)
      results[i] = good and { ok = true, value = value } or { ok = false, err = value }
    else
      results[i] = (task:wait())
    end
    start()
  end
  return results
end

--- Runs all items at once; the first to finish decides: its results are returned, or its error raised,
--- when the others have been cancelled and joined. Waits.
---@param list (function|bough.task)[]
---@return any ...
function M.race(list, ...)
  one_table("race", ...)
  local count, limit = check("race", list, {})
  if count == 0 then fail("invalid", "race", "nobody takes part") end
  local winner
  do
    local group <close> = new_scope()
    start_all(group, list, count, limit)
    winner = next_task(group)
    group:cancel()
    -- Losers that fail on the way out do not change the result.
    local loser
    repeat loser = next_task(group) until not loser
    group.failed = {}
  end
  return winner:wait()
end

--- Iterates over the items in the order in which they finish. Leaving the loop cancels and joins the
--- rest. Each step waits.
---
---     for i, value, err in bough.completed { f, g } do ... end
---@param list { [integer]: function|bough.task, n: integer?, limit: integer? }
---@return fun(): integer?, any, any position, first result, error
function M.completed(list, ...)
  one_table("completed", ...)
  local count, limit = check("completed", list, { limit = true })
  local group = new_scope()
  local start, position = start_all(group, list, count, limit)
  local function step()
    local task = next_task(group)
    if not task then return nil end
    start()
    local good, value = pcall(task.wait, task)
    if good then return position[task], value, nil end
    return position[task], nil, value
  end
  -- The closing value gets no error on `break`: what is left must be cancelled all the same.
  local closer = setmetatable({}, {
    __close = function(_, problem)
      group:cancel()
      join(group, problem)
    end,
  })
  return step, nil, nil, closer
end

return M
