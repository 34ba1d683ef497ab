--- A command that has not been started: what to run, and where.
--
-- It never changes and may be started as often as one likes, alone or as a stage of pipelines (pipeline.lua). Where
-- it runs is a function that starts a process; this module knows nothing else about that place.

local errors = require "bough.error"
local options = require "bough.options"
local pipeline = require "bough.pipeline"

local M = {}

local raise = errors.raise

local DATA = {} -- key of the private data

--- What starts a process. Called as `popen(options, nil, { eager = true })`: it need not wait until the command runs,
--- `process:started()` does. `options` are the caller's own, with `stdin`, `stdout` and `stderr` as the pipeline
--- needs them.
---@alias bough.popen fun(options: table, none: nil, within: table): bough.process

---@class bough.command: bough.pipeline
---@field command string one line for what it runs
---@operator bor(any): bough.pipeline

local meta = { __name = "bough.command" }

-- Plain tables, however deep: what the caller does with his afterwards is his affair.
local function copy(value)
  if type(value) ~= "table" or getmetatable(value) ~= nil then return value end
  local all = {}
  for name, inner in pairs(value) do all[name] = copy(inner) end
  return all
end

local function check_sandboxed(given, op)
  return options.spec(given, nil, { op = op, live = true }).command
end

--- Makes a command.
---@param popen bough.popen where it runs
---@param command string|table shell line, or options with the command in the array part
---@param opts table? with a shell line
---@param op string for messages: "cmd", "host"
---@param check (fun(options: table, op: string): string)? checks the options and returns the command as one
---  line; default: those of popen in a sandbox
---@return bough.command
function M.new(popen, command, opts, op, check)
  local given = copy(options.fold(command, opts, op))
  local text = (check or check_sandboxed)(given, op)
  if given.pty then
    raise("invalid", op, "pty: a terminal is stdin, stdout and stderr in one, which a stage of a pipeline"
      .. " cannot have: use popen")
  end
  local wants_check = given.check
  -- The pipeline judges; a session's own `check` still comes through, as an error of the process's wait.
  if wants_check then given.check = nil end
  return setmetatable({
    [DATA] = {
      stages = { { kind = "command", op = op, popen = popen, options = given, text = text, check = wants_check } },
      options = {},
    },
  }, meta)
end

--- Whether `value` is a command.
---@param value any
---@return boolean
function M.is(value) return type(value) == "table" and rawget(value, DATA) ~= nil end

pipeline.adopt(meta, function(self) return rawget(self, DATA) end)

return M
