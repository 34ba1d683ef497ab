--- Plain commands of this machine, for pipelines that mix them with sandboxed ones.
--
-- They run outside of any sandbox, as `io.popen` would run them: with the host's environment, files and working
-- directory. No child of the host process comes of it, and no SIGCHLD: a small program, bough-spawn, starts them.

local core = require "bough.core"
local command = require "bough.command"
local errors = require "bough.error"
local live = require "bough.live"
local options = require "bough.options"

local M = {}

local raise, quote = errors.raise, errors.quote

-- The spec of a command, which is relative to where the host stands.
local function spec_of(command_or_table, opts, op)
  local given = {}
  for name, value in pairs(options.fold(command_or_table, opts, op)) do given[name] = value end
  local cwd = given.cwd
  if cwd ~= nil and (type(cwd) ~= "string" or cwd == "" or cwd:find("\0", 1, true)) then
    raise("invalid", op, "cwd must be a path, got %s", quote(cwd))
  end
  if given.user ~= nil then raise("invalid", op, "user: a plain command runs as who you are") end
  given.cwd = nil
  local spec, policy = options.spec(given, nil, { op = op, live = true, bare = true })
  spec.cwd, spec.user = cwd, nil
  return spec, policy
end

local place = {}
function place:exec(spec) return core.host_exec(spec) end

--- Starts one. Waits until it runs. Options as `popen` has them; `cwd` may be relative; `stdin`, `stdout` and `stderr`
--- given as Lua files, and `bough.INHERIT`, go to the command as they are.
---@param command_or_table string|table
---@param opts table?
---@param within { eager: boolean? }?
---@return bough.process
function M.popen(command_or_table, opts, within)
  local spec, policy = spec_of(command_or_table, opts, "host")
  spec.eager = within ~= nil and within.eager or nil
  return live.start(place, spec, policy, "host")
end

--- A command object for pipelines: `bough.host "ls -l" | session:cmd "sort"`.
---@param command_or_table string|table
---@param opts table?
---@return bough.command
function M.cmd(command_or_table, opts)
  return command.new(M.popen, command_or_table, opts, "host", function(given, op)
    return spec_of(given, nil, op).command
  end)
end

return M
