--- A pipeline that runs, and how it ended.

local core = require "bough.core"
local errors = require "bough.error"
local launch = require "bough.launch"
local task = require "bough.task"

local M = {}

local raise, quote = errors.raise, errors.quote

local CAPTURED = 1024 * 1024
local SIGPIPE = 13

---@class bough.stage_result
---@field command string
---@field exit_code integer 128+n after signal n
---@field signal integer?
---@field timed_out boolean
---@field oom boolean
---@field ok boolean
---@field elapsed_time number seconds
---@field stderr string? unless the command sends it elsewhere

---@class bough.pipeline_result
---@field ok boolean
---@field exit_code integer of the stage that decides; 137 after the pipeline's time limit
---@field signal integer?
---@field timed_out boolean the pipeline's time limit ended it, or that of the stage that decides
---@field stage integer which stage decides
---@field pipefail boolean
---@field stages bough.stage_result[]
---@field stdout string? when it was captured
---@field stderr string? of all stages, in their order
---@field truncated { stdout: integer? } bytes dropped
---@field elapsed_time number seconds

---@class bough.running
---@field command string
---@field stdin bough.writer? when the first stage has `stdin = bough.PIPE`
---@field stdout bough.reader? unless a sink takes it
---@field stages bough.process[] in order; a function's takes only the signals that end it
local methods = {}
local meta = { __name = "bough.running" }

local DATA = {} -- key of a bough.launched

local function data_of(self, op)
  local data = type(self) == "table" and rawget(self, DATA)
  if not data then
    raise("invalid", op, "called on %s instead of a running pipeline: write running:%s(...)", quote(self), op)
  end
  return data
end

-- -- the end -----------------------------------------------------------------------------------------

local function has_ended(process)
  local good, code = pcall(process.poll, process)
  return not good or code ~= nil
end

-- Returns the error of a command that was judged by its session's `check`, which carries the result.
local function wait_for(process)
  local good, problem = pcall(process.wait, process)
  if good then return nil end
  if errors.is(problem) and problem.result and has_ended(process) then return problem end
  error(problem, 0)
end

-- Whoever writes to a stderr that nobody reads holds up the others, unless somebody waits for him.
local function attend(data)
  local scope
  for i = 1, #data.stages - 1 do
    local process = data.stages[i]
    if process.stderr and not has_ended(process) then
      if not scope and launch.without_tasks() then return nil end
      scope = scope or task.scope()
      scope:spawn(pcall, process.wait, process)
    end
  end
  return scope
end

-- Waits for all. An interruption of the waiter is raised as it is, and says nothing about the pipeline.
local function join(data)
  if data.over then return end
  local _ <close> = attend(data)
  -- from the end: what ends early there ends what is in front of it
  for i = #data.all, 1, -1 do
    local process = data.all[i]
    local good, problem = pcall(wait_for, process)
    if good then
      data.judged = data.judged or problem ~= nil
    else
      if launch.is_interruption(problem) or not has_ended(process) then error(problem, 0) end
      launch.fail(data, problem)
    end
  end
  if data.stopping then data.stopping:wait() end
  if data.timer then data.timer:cancel() end
  data.over = true
  data.elapsed_time = core.now() - data.started_at
end

-- -- the verdict ---------------------------------------------------------------------------------------

local function stage_result(process, stage)
  local result = process.result
  return {
    command = stage.text, exit_code = result.exit_code, signal = result.signal, timed_out = result.timed_out,
    oom = result.oom or false, ok = result.ok, elapsed_time = result.elapsed_time, stderr = result.stderr,
  }
end

-- The stage whose status is the pipeline's: the last, or the last that failed.
local function deciding(stages, pipefail)
  for i = #stages, 1, -1 do
    if not pipefail or not stages[i].ok then return i end
  end
  return #stages
end

-- Whether it was the pipeline's time limit that ended a stage, and not one of its own.
local function is_limited(data, stage, result)
  local own = stage.kind == "command" and stage.options.timeout
  return result.timed_out and data.due ~= nil and not (own and own <= data.plan.options.timeout)
end

local function result_of(data)
  local stages, complaints, limited = {}, {}, data.expired or false
  for i, process in ipairs(data.stages) do
    local stage = data.plan.stages[i]
    stages[i] = stage_result(process, stage)
    complaints[#complaints + 1] = stages[i].stderr
    limited = limited or is_limited(data, stage, stages[i])
  end
  data.limited = limited
  local pipefail = data.plan.options.pipefail or false
  local at = deciding(stages, pipefail)
  local last = data.stages[#data.stages].result
  local truncated = last.truncated and last.truncated.stdout or data.dropped
  return {
    ok = stages[at].ok and not limited, exit_code = limited and 137 or stages[at].exit_code,
    signal = limited and 9 or stages[at].signal, timed_out = limited or stages[at].timed_out, stage = at,
    pipefail = pipefail, stages = stages, stdout = data.captured or last.stdout,
    stderr = complaints[1] and table.concat(complaints) or nil, truncated = { stdout = truncated },
    elapsed_time = data.elapsed_time,
  }
end

-- What `check` makes of stage `i`; of the pipeline's time limit, without it.
local function complaint(data, result, i)
  local many = #result.stages > 1
  local at = i or result.stage
  local stage = result.stages[at]
  local op = ("%s %s"):format(many and "pipeline" or data.plan.stages[at].op or "cmd", quote(data.plan.text))
  local what = many and ("stage %d (%s): "):format(at, stage.command) or ""
  local details = { result = result, command = i and stage.command or data.plan.text }
  if not i then
    return errors.new("timeout", op, details, "stopped at its time limit of %g s", data.plan.options.timeout)
  elseif stage.timed_out then
    return errors.new("timeout", op, details, "%sstopped at its time limit", what)
  end
  return errors.new("exit", op, details, "%s%s", what, errors.ending(stage))
end

-- Raises what `check` asks for: of the pipeline, of a session, of one command. `cut`: we closed the output before
-- its end, so that SIGPIPE is our doing.
local function judge(data, result, cut)
  local function is_bad(stage)
    return not stage.ok and not (cut and (stage.signal == SIGPIPE or stage.exit_code == 128 + SIGPIPE))
  end
  local wanted = data.plan.options.check
  if wanted == nil then wanted = data.judged end
  if wanted and data.limited then error(complaint(data, result), 0) end
  for i = #result.stages, 1, -1 do
    local own = data.plan.stages[i].check
    if (own or (wanted and i == result.stage)) and is_bad(result.stages[i]) then
      error(complaint(data, result, i), 0)
    end
  end
end

-- The result when all is over; raises what failed.
local function finish(data, cut)
  join(data)
  if data.failure then error(data.failure[1], 0) end
  if data.given_up then raise("closed", data.op, "closed before it finished: %s", data.plan.text) end
  data.result = data.result or result_of(data)
  judge(data, data.result, cut)
  return data.result
end

-- Reads what the last stage writes, for one that cannot capture it itself.
local function capture(data)
  local kept, size, dropped = {}, 0, 0
  while true do
    local chunk = data.stdout:read "c"
    if not chunk then break end
    local take = math.min(#chunk, CAPTURED - size)
    if take > 0 then kept[#kept + 1] = chunk:sub(1, take) end
    size, dropped = size + take, dropped + #chunk - take
  end
  data.captured, data.dropped = table.concat(kept), dropped > 0 and dropped or nil
end

local function close_ends(data)
  if data.stdin then data.stdin:close() end
  if data.stdout then data.stdout:close() end
end

-- -- methods -----------------------------------------------------------------------------------------

local function output_of(self, op)
  local data = data_of(self, op)
  if not data.stdout then
    raise("invalid", op, "the output of %s goes elsewhere: there is nothing to read", data.plan.text)
  end
  return data.stdout
end

--- Reads from the last stage's output, as `stdout:read` does. Waits.
---@param ... string|integer formats; default "l"
---@return any ...
function methods:read(...)
  local stdout = output_of(self, "read")
  return stdout:read(...)
end

--- Iterates over the last stage's output, as `stdout:lines` does. Each step waits.
---@param ... string|integer formats; default "l"
---@return fun(): any
function methods:lines(...)
  local stdout = output_of(self, "lines")
  return stdout:lines(...)
end

--- Waits until all stages are over. Output that nobody has read can still be read afterwards. Raises the error of
--- a function among the stages, and what `check` asks for. Repeatable.
---@param timeout number? seconds; raises kind `timeout` when they pass first, and leaves all running
---@return bough.pipeline_result
function methods:wait(timeout)
  local data = data_of(self, "wait")
  if timeout == nil then return finish(data) end
  if type(timeout) ~= "number" or timeout ~= timeout or timeout < 0 then
    raise("invalid", "wait", "timeout must be a number of seconds, got %s", quote(timeout))
  end
  local due = core.now() + timeout
  local good, problem = pcall(core.deadline, timeout, join, data)
  if not good then
    if errors.is(problem, "timeout") and problem.op == "deadline" and core.now() >= due then
      raise("timeout", "wait", "still running after %g s: %s", timeout, data.plan.text)
    end
    error(problem, 0)
  end
  return finish(data)
end

--- The exit code when all stages are over, nil before. Never waits.
---@return integer?
function methods:poll()
  local data = data_of(self, "poll")
  for _, process in ipairs(data.all) do
    if not has_ended(process) then return nil end
  end
  if data.failure then error(data.failure[1], 0) end
  return data.given_up and 137 or result_of(data).exit_code
end

--- Sends a signal to all stages that run. A function among them is cancelled by a signal that ends processes; others do
--- not concern it.
---@param signal string|integer|nil default "KILL"
function methods:kill(signal)
  for _, process in ipairs(data_of(self, "kill").stages) do
    if not has_ended(process) then process:kill(signal) end
  end
end

--- Closes the ends that are ours, so that whoever still writes there ends of SIGPIPE, and waits for all.
---@return true? ok
---@return "exit"|"signal" how
---@return integer status exit code or signal of the stage that decides
function methods:close()
  local data = data_of(self, "close")
  close_ends(data)
  join(data)
  if data.failure then error(data.failure[1], 0) end
  if data.given_up then return nil, "signal", 9 end
  local result = result_of(data)
  if result.signal then return nil, "signal", result.signal end
  return result.ok or nil, "exit", result.exit_code
end

-- -- objects -----------------------------------------------------------------------------------------

--- Starts a pipeline. Waits until its commands run.
---@param plan bough.pipeline_plan
---@param op string for messages
---@param captured boolean? its output is for the result: `M.finish` takes it
---@return bough.running
function M.start(plan, op, captured)
  return setmetatable({ [DATA] = launch.start(plan, op, captured) }, meta)
end

--- Waits for the end, with what is left of the output in the result, up to 1 MiB.
---@param running bough.running
---@return bough.pipeline_result
function M.finish(running)
  local data = rawget(running, DATA)
  if data.stdout then capture(data) end
  return finish(data)
end

--- Lets go of the output, wherever reading has stopped, and waits for the end.
---@param running bough.running
---@return bough.pipeline_result
function M.cut(running)
  local data = rawget(running, DATA)
  close_ends(data)
  return finish(data, true)
end

local shown = { stdin = true, stdout = true, stages = true }

function meta:__index(name)
  local data = rawget(self, DATA)
  if name == "command" then return data.plan.text end
  if shown[name] then return data[name] end
  return methods[name]
end

function meta:__newindex(name)
  raise("invalid", nil, "running.%s: the fields of a running pipeline cannot be set", tostring(name))
end

function meta:__tostring()
  local data = rawget(self, DATA)
  local state = data.failure and "failed" or data.given_up and "closed" or data.over and "over" or "live"
  return ("running %s (%s)"):format(data.plan.text, state)
end

-- Kills what runs.
function meta:__close()
  local data = rawget(self, DATA)
  if data.stopping then return data.stopping:wait() end
  if not data.over and not data.given_up then launch.stop(data) end
end

return M
