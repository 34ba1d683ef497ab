--- A Lua function as a process: a task that reads a stream and writes another.
--
-- The process is the usual `bough.process`, on a handle made here, so that a pipeline treats its stages alike. Signals
-- that end a command cancel the task; its streams are closed whichever way it ends.

local core = require "bough.core"
local errors = require "bough.error"

local M = {}

local ends = { [1] = true, [2] = true, [3] = true, [6] = true, [9] = true, [13] = true, [15] = true }

---@class bough.filter what an engine's handle is to a command
---@field over boolean
---@field private task bough.task
---@field private state table what the task may see: if it held the handle, that would never be collected
local handle = {}
local handle_meta = { __name = "bough.filter" }

local function is_finished(task)
  local status = task.status
  return status == "done" or status == "failed" or status == "cancelled"
end

function handle_meta:__index(name)
  if name == "over" then return is_finished(self.task) end
  return handle[name]
end

local function close_streams(state)
  local input, output = state.input, state.output
  state.input, state.output = nil, nil
  if input then pcall(input.close, input) end
  if output then pcall(output.close, output) end
end

-- Whether an error says that nobody reads what the function writes: to a command that would be SIGPIPE.
local function is_broken_pipe(state, problem)
  local output = state.output
  if not output or not errors.is(problem, "closed") or output.closed then return false end
  local good, why = pcall(output.flush, output)
  return not good and errors.is(why, "closed")
end

local ending_meta = {
  __close = function(ending, problem)
    local state = ending.state
    if problem ~= nil and not state.signal and not is_broken_pipe(state, problem) then
      state.has_failed, state.problem = true, problem
      state.failed(problem)
    end
    close_streams(state)
    state.ended_at = core.now()
  end,
}

local function body(state, fn)
  local _ <close> = setmetatable({ state = state }, ending_meta)
  state.started = true
  fn(state.input, state.output)
end

local function result_of(state)
  local signal = state.signal
  local code = signal and 128 + signal or state.has_failed and 1 or 0
  return {
    exit_code = code, signal = signal, ok = code == 0, timed_out = state.timed_out == true, oom = false,
    elapsed_time = (state.ended_at or core.now()) - state.started_at, user_time = 0.0, system_time = 0.0,
    max_rss = 0, error = state.problem, truncated = {}, resources = { user_time = 0.0, system_time = 0.0, max_rss = 0 },
  }
end

--- The result when the function has returned; one of exit code 1, with the `error`, when it failed. Waits.
--- Repeatable.
---@param seconds number? nil comes back when they have passed first
---@return bough.result?
function handle:wait(seconds)
  local task, state = self.task, self.state
  local good, problem
  if seconds and not is_finished(task) then
    local due = core.now() + seconds
    good, problem = pcall(core.deadline, seconds, task.wait, task)
    if not good and not is_finished(task) and core.now() >= due and errors.is(problem, "timeout") then
      return nil
    end
  else
    good, problem = pcall(task.wait, task)
  end
  if not good and not is_finished(task) then error(problem, 0) end -- the waiter was interrupted
  self.result = self.result or result_of(state)
  return self.result
end

function handle:started() end -- luacheck: ignore 212 (as any handle's)

--- Cancels the task for what would end a command; other signals mean nothing to a function.
---@param number integer
function handle:signal(number)
  local state = self.state
  if not ends[number] or is_finished(self.task) then return end
  state.signal = state.signal or number
  self.task:cancel()
  if not state.started then close_streams(state) end
end

function handle:resize() end -- luacheck: ignore 212

--- Cancels the task. Never waits.
function handle:close() self:signal(9) end

--- Cancels the task, because its time is over.
function handle:expire()
  if is_finished(self.task) or self.state.signal then return end
  self.state.timed_out = true
  self:signal(9)
end

--- Starts a function.
---@param fn fun(input: bough.reader?, output: bough.writer?) its return ends its output
---@param opts { command: string, input: bough.reader?, output: bough.writer?, stdout: bough.reader?,
---  failed: fun(problem: any) } stdout: the other end of `output`, when it is the process's; failed: told of
---  the function's error at once, in its task; may not wait
---@return bough.process
---@return bough.filter handle
function M.start(fn, opts)
  local state = {
    input = opts.input, output = opts.output, failed = opts.failed, started_at = core.now(),
  }
  local made = setmetatable({ state = state, task = core.spawn(body, state, fn) }, handle_meta)
  return core.process(made, { stdout = opts.stdout, command = opts.command, op = opts.command }), made
end

return M
