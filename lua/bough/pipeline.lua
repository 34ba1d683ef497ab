--- Commands joined by `|`: what is to run, before it runs.
--
-- A pipeline never changes: each `|` makes a new one, and each start runs it anew (running.lua). A single
-- command has all that a pipeline has.

local core = require "bough.core"
local check = require "bough.check"
local errors = require "bough.error"
local running = require "bough.running"
local tee = require "bough.tee"

local M = {}

local raise, quote = errors.raise, errors.quote

local DATA = {} -- key of the private data of pipelines

---@class bough.pipeline_settings
---@field pipefail boolean? the last stage that failed decides, instead of the last stage; default false
---@field check boolean? raise kind `exit`, or `timeout`, when the stage that decides failed; default: that
---  of the session
---@field timeout number? seconds for all stages together; then all are killed

---@class bough.pipeline
---@field command string one line for all of it
---@operator bor(any): bough.pipeline
local methods = {}
local meta = { __name = "bough.pipeline" }

---@class bough.pipeline_plan
---@field stages table[] { kind: "command"|"function"|"tee", text: string, ... }
---@field source { value: any, text: string }?
---@field sink bough.sink?
---@field options bough.pipeline_settings
---@field text string

local finders = {} -- metatable -> function that gives an object's plan
finders[meta] = function(self) return rawget(self, DATA) end

local function plan_of(value)
  local find = finders[getmetatable(value)]
  return find and find(value)
end

local function self_plan(self, op)
  return plan_of(self) or raise("invalid", op, "called on %s instead of a command or pipeline: write command:%s(...)"
    .. " or (a | b):%s(...)", quote(self), op, op)
end

local function text_of(plan)
  local words = {}
  if plan.source then words[1] = plan.source.text end
  for _, stage in ipairs(plan.stages) do words[#words + 1] = stage.text end
  if plan.sink then words[#words + 1] = plan.sink.text end
  return table.concat(words, " | ")
end

-- A plan with other stages, source, sink or options; what `changes` lacks is as it was.
local function changed(plan, changes)
  local made = {}
  for _, name in ipairs { "stages", "source", "sink", "options" } do
    made[name] = changes[name] or plan[name]
  end
  made.text = text_of(made)
  return setmetatable({ [DATA] = made }, meta)
end

-- -- joining -----------------------------------------------------------------------------------------

local function class_of(value)
  local class = getmetatable(value)
  return io.type(value) or type(class) == "table" and rawget(class, "__name") or type(value)
end

local function is_default_output(value) return value == nil or value == true or value == core.PIPE end

-- Whether something may come behind.
local function check_open_end(plan)
  if plan.sink then
    raise("invalid", "pipeline", "%s is a sink, so nothing can follow it: bough.tee copies what passes",
      plan.sink.text)
  end
  local last = plan.stages[#plan.stages]
  if last.kind == "command" and not is_default_output(last.options.stdout) then
    raise("invalid", "pipeline", "%s has a stdout of its own, so nothing can follow: leave it out", last.text)
  end
end

-- Whether something may come in front.
local function check_open_start(plan)
  if plan.source then
    raise("invalid", "pipeline", "%s is a source, so nothing can come in front of it: leave out the parentheses",
      plan.source.text)
  end
  local first = plan.stages[1]
  if first.options.stdin then
    raise("invalid", "pipeline", "%s has a stdin of its own, so nothing can come in front: leave it out",
      first.text)
  end
end

local function append_stage(plan, stage)
  check_open_end(plan)
  local stages = table.move(plan.stages, 1, #plan.stages, 1, {})
  stages[#stages + 1] = stage
  return changed(plan, { stages = stages })
end

local function concatenate(left, right)
  check_open_end(left)
  check_open_start(right)
  local stages = table.move(left.stages, 1, #left.stages, 1, {})
  table.move(right.stages, 1, #right.stages, #stages + 1, stages)
  local settings = {}
  for name, value in pairs(left.options) do settings[name] = value end
  for name, value in pairs(right.options) do settings[name] = value end
  return changed(left, { stages = stages, sink = right.sink, options = settings })
end

local behind = { -- what people write behind a pipeline, and what they meant
  string = "write bough.file(path) for a file, session:cmd(line) for a command",
  table = "write session:cmd{ ... } for a command",
  ["bough.reader"] = "a reader is a source, and stands in front",
  ["bough.bytes"] = "data stands in front",
  ["bough.process"] = "it runs already: write to its stdin, or join commands before they start",
}

local function append(plan, value)
  local copying = tee.stage(value)
  if copying then return append_stage(plan, copying) end
  if type(value) == "function" then
    return append_stage(plan, { kind = "function", fn = value, text = tee.describe(value) })
  end
  local sink = tee.sink(value, "pipeline")
  if not sink then
    local class = class_of(value)
    raise("invalid", "pipeline", "%s cannot stand behind a command: %s",
      quote(value), behind[class]
      or "expected a command, a function, bough.tee, bough.file(path), a Lua file or a writer")
  end
  check_open_end(plan)
  return changed(plan, { sink = sink })
end

local in_front = {
  table = "write session:cmd{ ... } for a command",
  ["bough.writer"] = "a writer is a sink, and stands behind",
  ["bough.process"] = "write process.stdout | command",
  ["bough.tee"] = "bough.tee stands behind a command",
}

local function source_text(value, class)
  if type(value) == "string" then return quote(value) end
  if type(value) == "function" then return tee.describe(value) end
  if class == "bough.file" then return ("file(%s)"):format(quote(value.path)) end
  return tostring(value)
end

local function prepend(value, plan)
  local class = class_of(value)
  local kind = type(value)
  if not (kind == "string" or kind == "function" or class == "file" or class == "closed file"
    or class == "bough.file" or class == "bough.bytes" or class == "bough.reader") then
    raise("invalid", "pipeline", "%s cannot stand in front of a command: %s", quote(value),
      in_front[class] or "expected data, a function, bough.file(path), a Lua file or a reader")
  end
  check.stdin(value, "pipeline", true)
  check_open_start(plan)
  return changed(plan, { source = { value = value, text = source_text(value, class) } })
end

-- `|` with a pipeline, a command or a tee at one side or both.
local function join(a, b)
  local left, right = plan_of(a), plan_of(b)
  if left then
    return right and concatenate(left, right) or append(left, b)
  end
  if right then return prepend(a, right) end
  raise("invalid", "pipeline", "bough.tee stands behind a command: command | bough.tee(...)")
end

meta.__bor = join
tee.meta.__bor = join

-- -- settings ----------------------------------------------------------------------------------------

local known = { "pipefail", "check", "timeout" }

-- The settings in force: `opts` over those of the pipeline.
local function settings(plan, opts, op)
  errors.check_keys(op, opts, known)
  local made = {}
  for name, value in pairs(plan.options) do made[name] = value end
  if opts then
    for _, name in ipairs { "pipefail", "check" } do
      local value = check.boolean(opts[name], op, name)
      if value ~= nil then made[name] = value end
    end
    made.timeout = check.timeout(opts.timeout, op) or made.timeout
    if made.timeout == math.huge then made.timeout = nil end
  end
  return made
end

local function prepared(plan, opts, op)
  return {
    stages = plan.stages, source = plan.source, sink = plan.sink, text = plan.text,
    options = settings(plan, opts, op),
  }
end

--- The same with other settings.
---@param opts bough.pipeline_settings
---@return bough.pipeline
function methods:with(opts)
  local plan = self_plan(self, "with")
  return changed(plan, { options = settings(plan, opts, "with") })
end

--- The same with its output copied: `pipeline | bough.tee(...)`.
---@param ... any sinks, as `bough.tee` takes them
---@return bough.pipeline
function methods:tee(...) return append(self_plan(self, "tee"), tee.new(...)) end

-- -- running -----------------------------------------------------------------------------------------

--- Starts all stages. Waits until the commands run; raises what kept one of them from starting, and nothing
--- is left running then.
---@param opts bough.pipeline_settings?
---@return bough.running
function methods:start(opts)
  return running.start(prepared(self_plan(self, "start"), opts, "start"), "start")
end

-- What runs it to the end in one call: nobody can write to it meanwhile.
local function check_unattended(plan, op)
  if plan.stages[1].options.stdin == core.PIPE then
    raise("invalid", op, "%s has stdin = bough.PIPE, and nobody could write there: use start",
      plan.stages[1].text)
  end
end

-- For what reads: its output must come here.
local function readable(self, op)
  local plan = self_plan(self, op)
  check_unattended(plan, op)
  local last = plan.stages[#plan.stages]
  if plan.sink then
    raise("invalid", op, "the output of %s goes to %s: use wait", plan.text, plan.sink.text)
  elseif last.kind == "command" and not is_default_output(last.options.stdout) then
    raise("invalid", op, "%s has a stdout of its own: leave it out, or use wait", last.text)
  end
  return prepared(plan, nil, op)
end

--- Runs it, reads from its output, and waits for the end; what is not read is cut off. Waits.
---@param ... string|integer formats, as readers have; default "a"
---@return any ...
function methods:read(...)
  local plan = readable(self, "read")
  local run <close> = running.start(plan, "read")
  local values
  if select("#", ...) == 0 then
    values = table.pack(run:read "a")
  else
    values = table.pack(run:read(...))
  end
  running.cut(run)
  return table.unpack(values, 1, values.n)
end

--- Iterates over its output. It starts at the first step and is waited for at the end; leaving the loop kills it.
--- Each step waits.
---
---     for line in pipeline:lines() do ... end
---@param ... string|integer formats, as readers have; default "l"
---@return fun(): any
function methods:lines(...)
  local plan = readable(self, "lines")
  local formats = table.pack(...)
  local run, next_line, is_over
  local function passed(first, ...)
    if first ~= nil then return first, ... end
    is_over = true
    running.cut(run)
    return nil
  end
  local function step()
    if is_over then return nil end
    if not run then
      run = running.start(plan, "lines")
      next_line = run:lines(table.unpack(formats, 1, formats.n))
    end
    return passed(next_line())
  end
  local closer = setmetatable({}, {
    __close = function()
      local _ <close> = run
      is_over = true
    end,
  })
  return step, nil, nil, closer
end

--- Runs it to the end. Output that goes nowhere else is captured, up to 1 MiB. A stage that fails is a result,
--- unless `check`; an error in a function among the stages is raised. Waits.
---@param opts bough.pipeline_settings?
---@return bough.pipeline_result
function methods:wait(opts)
  local plan = self_plan(self, "wait")
  check_unattended(plan, "wait")
  local run <close> = running.start(prepared(plan, opts, "wait"), "wait", true)
  return running.finish(run)
end

--- Runs it to the end, its output going to `sink`. Waits.
---@param sink string|file*|bough.writer|function a path or bough.file(path) (there whole at the end, or not at
---  all), a Lua file, a writer (closed at the end), function(chunk)
---@param opts { text: "lines"|nil, pipefail: boolean?, check: boolean?, timeout: number? }? text: the function
---  gets lines, without the newline
---@return bough.pipeline_result
function methods:to(sink, opts)
  local plan = self_plan(self, "to")
  errors.check_keys("to", opts, { "text", "pipefail", "check", "timeout" })
  local text, rest = opts and opts.text, {}
  for name, value in pairs(opts or {}) do rest[name] = value end
  rest.text = nil
  local checked = tee.sink(sink, "to", { paths = true, text = text })
  if not checked then
    raise("invalid", "to", "expected a path, a Lua file, a writer or a function, got %s", quote(sink))
  end
  check_open_end(plan)
  if checked.kind == "path" and core.fs.stat(checked.value .. "/.") then -- else only the end would tell
    raise("invalid", "to", "%s is a directory", quote(checked.value))
  end
  local good, result = pcall(methods.wait, changed(plan, { sink = checked }), rest)
  if good then return result end
  -- whoever writes the file, or opens it, knows nothing of this call
  if checked.kind == "path" and errors.is(result) and result.message:find("^output ")
    and result.message:find(checked.value, 1, true) then
    result.op = "to"
  end
  error(result, 0)
end

-- -- objects -----------------------------------------------------------------------------------------

local function index(self, name)
  if name == "command" then return plan_of(self).text end
  return methods[name]
end

local function refuse_change(_, name)
  raise("invalid", "pipeline", "%s cannot be set: commands and pipelines never change", tostring(name))
end

meta.__index = index
meta.__newindex = refuse_change

function meta:__tostring() return "pipeline " .. plan_of(self).text end

--- Makes a class's objects pipelines of one stage.
---@param class table metatable
---@param find fun(self: table): table gives { stages =, options = }
function M.adopt(class, find)
  finders[class] = function(self)
    local plan = find(self)
    plan.text = plan.text or text_of(plan)
    return plan
  end
  class.__bor, class.__index, class.__newindex = join, index, refuse_change
  function class:__tostring() return "command " .. plan_of(self).text end
end

--- Whether `value` is a pipeline or a command.
---@param value any
---@return boolean
function M.is(value) return plan_of(value) ~= nil end

return M
