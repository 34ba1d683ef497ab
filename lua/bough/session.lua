--- What sessions, images and instances have beyond their own: commands for pipelines, and a shell to drop into.

local core = require "bough.core"
local command = require "bough.command"
local errors = require "bough.error"
local image = require "bough.image"
local instance = require "bough.instance"

local M = {}

-- bash where the image has one.
local SHELL = { "/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh" }

--- A command that has not been started, to be joined to others with `|`, read from, or started.
---@param place bough.session|bough.image|bough.instance
---@param line string|table shell line, or options with the command in the array part
---@param opts table? with a shell line
---@return bough.command
function M.cmd(place, line, opts)
  local function popen(options, none, within) return place:popen(options, none, within) end
  return command.new(popen, line, opts, "cmd")
end

--- Opens a shell in the caller's terminal, and returns when it has ended. Waits.
---@param place bough.session|bough.image|bough.instance
---@param opts table? options of `popen`; an array part runs that instead; `detach`: as for `attach`
---@return integer code
function M.shell(place, opts)
  local given = {}
  if opts ~= nil and type(opts) ~= "table" then
    errors.raise("invalid", "shell", "expected a table of options, got %s", errors.quote(opts))
  end
  for name, value in pairs(opts or {}) do given[name] = value end
  local detach = given.detach
  given.detach = nil
  if given[1] == nil and given.command == nil and given.shell == nil then
    table.move(SHELL, 1, #SHELL, 1, given)
  end
  if given.pty == nil then given.pty = { term = os.getenv "TERM" } end
  local process <close> = place:popen(given)
  return process:attach { pty = true, detach = detach }
end

core.session_methods.cmd, core.session_methods.shell = M.cmd, M.shell
image.replace("cmd", M.cmd)
image.replace("shell", M.shell)
instance.add("cmd", M.cmd)
instance.add("shell", M.shell)

return M
