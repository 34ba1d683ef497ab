--- Starting a pipeline: from a plan to the processes of its stages, each of which gets the stream of the one
--- before.
--
-- All are started before any is waited for. Between two commands there is a kernel pipe and nothing else; a Lua
-- function among them is a process of filter.lua. Work that no stage stands for (an iterator as source, a sink that
-- Lua code writes to) is done by such processes too, which nobody sees.

local core = require "bough.core"
local check = require "bough.check"
local errors = require "bough.error"
local filter = require "bough.filter"
local task = require "bough.task"
local tee = require "bough.tee"

local M = {}

local raise, quote = errors.raise, errors.quote

---@class bough.launched what has been started
---@field plan bough.pipeline_plan
---@field op string
---@field stages bough.process[]
---@field all bough.process[] those and the unseen ones, each behind whoever writes to it
---@field stdin bough.writer?
---@field stdout bough.reader?
---@field started_at number
---@field due number? when the time limit ends it
---@field expired boolean? that has come
---@field over boolean? all have ended
---@field given_up boolean? nobody wants what it does any more
---@field failure { [1]: any }? the error that ended it
---@field stopping bough.task? kills the rest, after a failure
---@field package timer bough.task?
---@field package weak { [1]: bough.launched? } for tasks: what they held would not be collected, and so not killed
---@field package impatient bough.filter[] those that the time limit has to end
---@field package streams table[] ends of pipes of ours
---@field package opened bough.sinks[]

--- Whether an error says something about the waiter, and nothing about what he waits for.
---@param problem any
---@return boolean
function M.is_interruption(problem)
  if not errors.is(problem) then return true end
  return problem.kind == "cancelled" and problem.op == nil
    or problem.kind == "timeout" and problem.op == "deadline"
end

-- -- giving up ---------------------------------------------------------------------------------------

local function close_now(process) local _ <close> = process end

local function close_all(data)
  local scope <close> = task.scope()
  for i = #data.all, 1, -1 do scope:spawn(close_now, data.all[i]) end
end

--- Kills whatever runs, and waits until it is over. All are given up before any of them notices the end of another,
--- so that none of them ends as if all were well.
---@param data bough.launched
function M.stop(data)
  data.given_up = true
  if data.timer then data.timer:cancel() end
  local good, problem = pcall(close_all, data)
  if not good and errors.is(problem, "state") then good = true end -- a place where no other task runs
  for i = #data.all, 1, -1 do -- those that are left when that was cut short
    local closed, why = pcall(close_now, data.all[i])
    if not closed and good then good, problem = false, why end
  end
  for _, opened in ipairs(data.opened) do opened:drop() end
  for _, stream in ipairs(data.streams) do pcall(stream.close, stream) end
  if not good then error(problem, 0) end
end

--- Ends it because of an error: what went wrong first counts. Never waits: a task kills the rest.
---@param data bough.launched
---@param problem any
function M.fail(data, problem)
  if data.failure or data.given_up then return end
  data.failure = { problem }
  data.given_up = true
  data.stopping = core.spawn(M.stop, data)
end

-- -- Lua functions -------------------------------------------------------------------------------------

--- Why no task runs in this place, nil where they do. Waits.
---@return bough.error?
function M.without_tasks()
  local good, problem = pcall(function() core.spawn(function() end):wait() end)
  if good then return nil end
  if not errors.is(problem, "state") then error(problem, 0) end
  return problem
end

local function add_filter(data, fn, opts)
  if not data.has_tasks then
    local problem = M.without_tasks()
    if problem then raise("state", data.op, "a pipeline with Lua functions: %s", problem.message) end
    data.has_tasks = true
  end
  local weak = data.weak
  opts.failed = function(problem)
    if weak[1] then M.fail(weak[1], problem) end
  end
  local process, handle = filter.start(fn, opts)
  data.all[#data.all + 1] = process
  if not opts.patient then data.impatient[#data.impatient + 1] = handle end
  return process
end

-- A pipe of ours; whoever gets the reader closes it, or `stop` does.
local function pipe(data, name)
  local reader, writer = core.pipe(name)
  data.streams[#data.streams + 1] = reader
  data.streams[#data.streams + 1] = writer
  return reader, writer
end

-- Says at the end of a stream whether that was the end of the data: `upstream` may have been killed by us.
local function settled(data, upstream)
  local weak, weak_upstream = data.weak, setmetatable({ upstream }, { __mode = "v" })
  return function()
    local process = weak_upstream[1]
    if process then pcall(process.wait, process) end
    return weak[1] ~= nil and not weak[1].given_up
  end
end

-- A function that copies its input to sinks, and whether the end of its input is sure to end it.
local function copier(data, list, upstream)
  local opened, done = tee.open(list), settled(data, upstream)
  data.opened[#data.opened + 1] = opened
  local patient = true
  for _, sink in ipairs(list) do patient = patient and (sink.kind == "path" or sink.kind == "file") end
  return function(input, output) tee.copy(input, output, opened, done) end, patient
end

-- Copies a stream to a sink, and to nowhere else.
local function drain(data, input, sink, upstream)
  local fn, patient = copier(data, { sink }, upstream)
  add_filter(data, fn, { input = input, command = "sink", patient = patient })
end

local function feed(next_chunk)
  return function(_, output)
    while true do
      local chunk = next_chunk()
      if chunk == nil or chunk == false then return end
      if type(chunk) ~= "string" then
        raise("invalid", "pipeline", "the function in front must return strings and then nil, got %s",
          quote(chunk))
      end
      output:write(chunk)
    end
  end
end

-- -- stages --------------------------------------------------------------------------------------------

local function is_piped(value) return value == nil or value == true or value == core.PIPE end

-- The streams of a command: its options and, where Lua functions take its output, those.
local function streams_of(data, stage, input, place)
  local given = {}
  for name, value in pairs(stage.options) do given[name] = value end
  local out, err -- sinks
  local text = given.text
  given.text = nil
  if input ~= nil then given.stdin = input end
  if not place.is_last then
    given.stdout = core.PIPE
  elseif place.sink then
    given.stdout = place.sink.value
    if place.sink.kind == "function" then given.stdout, out = core.PIPE, place.sink end
  elseif type(given.stdout) == "function" then
    given.stdout, out = core.PIPE, tee.sink(given.stdout, "pipeline", { text = text })
  elseif is_piped(given.stdout) then
    given.stdout = place.capture or core.PIPE
  end
  if given.stderr == nil then given.stderr = true end
  if type(given.stderr) == "function" then
    given.stderr, err = core.PIPE, tee.sink(given.stderr, "pipeline", { text = text })
  end
  local left = data.due and math.max(data.due - core.now(), 0.001)
  if left and not (given.timeout and given.timeout <= left) then given.timeout = left end
  return given, out, err
end

-- Calls what starts a command. What it raises names the command, and not the step: of several, only that tells which.
local function naming(stage, step, ...)
  local good, result = pcall(step, ...)
  if good then return result end
  if errors.is(result) and not M.is_interruption(result) and not check.is_foreign(result) then
    result.op = ("%s %s"):format(stage.op, quote(stage.text))
  end
  error(result, 0)
end

local function start_command(data, stage, input, place)
  local given, out, err = streams_of(data, stage, input, place)
  local process = naming(stage, stage.popen, given, nil, { eager = true })
  data.all[#data.all + 1] = process
  if err then drain(data, process.stderr, err, process) end
  if out then
    drain(data, process.stdout, out, process)
    return process
  end
  return process, process.stdout
end

local function start_function(data, stage, input, place)
  local sink = place.sink
  local upstream = data.stages[#data.stages]
  local reader, writer
  if sink and sink.kind == "writer" then
    writer = sink.value
  else
    reader, writer = pipe(data, stage.text)
  end
  local fn, patient = stage.fn, false
  if stage.kind == "tee" then fn, patient = copier(data, stage.sinks, upstream) end
  local process = add_filter(data, fn, {
    input = input, output = writer, stdout = place.is_last and not sink and reader or nil,
    command = stage.text, patient = patient,
  })
  if sink and reader then
    drain(data, reader, sink, process)
    reader = nil
  end
  return process, reader
end

-- What the first stage reads.
local function first_input(data, plan)
  local source = plan.source and plan.source.value
  if source == nil then source = plan.stages[1].options.stdin end
  if type(source) ~= "function" then return source end
  local reader, writer = pipe(data, "source")
  add_filter(data, feed(source), { output = writer, command = "source" })
  return reader
end

-- Commands keep the time themselves; functions do not.
local function start_timer(data, seconds)
  local weak = data.weak
  data.timer = core.spawn(function()
    core.sleep(seconds)
    local expired = weak[1]
    if not expired or expired.over then return end
    expired.expired = true
    for _, handle in ipairs(expired.impatient) do handle:expire() end
  end)
end

local function start_stages(data, plan, capture)
  local stream = first_input(data, plan)
  for i, stage in ipairs(plan.stages) do
    local is_last = i == #plan.stages
    local place = { is_last = is_last, sink = is_last and plan.sink or nil, capture = capture }
    local start = stage.kind == "command" and start_command or start_function
    data.stages[i], stream = start(data, stage, stream, place)
  end
  data.stdin, data.stdout = data.stages[1].stdin, stream
  for i, stage in ipairs(plan.stages) do
    local process = data.stages[i]
    if stage.kind == "command" then naming(stage, process.started, process) end
  end
  if data.due and data.impatient[1] then start_timer(data, data.due - core.now()) end
end

local guard_meta = {
  __close = function(guard)
    if not guard.done then M.stop(guard.data) end
  end,
}

--- Starts all stages of a pipeline. Waits until the commands run. Raises what kept one of them from starting; then
--- nothing is left running.
---@param plan bough.pipeline_plan
---@param op string for messages
---@param capture boolean? a last command captures its output
---@return bough.launched
function M.start(plan, op, capture)
  local timeout = plan.options.timeout
  local data = {
    plan = plan, op = op, started_at = core.now(), due = timeout and core.now() + timeout or nil,
    stages = {}, all = {}, impatient = {}, streams = {}, opened = {},
  }
  data.weak = setmetatable({ data }, { __mode = "v" })
  local guard <close> = setmetatable({ data = data }, guard_meta)
  local good, problem = pcall(start_stages, data, plan, capture)
  -- a function may have failed meanwhile, and what was killed for that starts no more
  if data.failure and (good or not M.is_interruption(problem)) then error(data.failure[1], 0) end
  if not good then error(problem, 0) end
  guard.done = true
  return data
end

return M
