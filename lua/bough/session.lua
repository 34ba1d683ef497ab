--- What sessions, images and instances have beyond their own: commands for pipelines, and a shell to drop into.

local core = require "bough.core"
local command = require "bough.command"
local errors = require "bough.error"
local image = require "bough.image"
local instance = require "bough.instance"
local options = require "bough.options"

local M = {}

-- bash where the image has one.
local SHELL = { "/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh" }

-- `session.shell "id"` instead of `session:shell "id"`.
local function check_place(place, op)
  local kind = type(place)
  if (kind ~= "userdata" and kind ~= "table") or getmetatable(place) == nil or not place.popen then
    errors.raise("invalid", op, "called on %s instead of a session, an image or an instance: write session:%s(...)",
      errors.quote(place), op)
  end
end

--- A command that has not been started, to be joined to others with `|`, read from, or started.
---@param place bough.session|bough.image|bough.instance
---@param line string|table shell line, or options with the command in the array part
---@param opts table? with a shell line
---@return bough.command
function M.cmd(place, line, opts)
  check_place(place, "cmd")
  local function popen(given, none, within) return place:popen(given, none, within) end
  return command.new(popen, line, opts, "cmd")
end

--- Opens a shell in the caller's terminal, and returns when it has ended. Waits.
---@param place bough.session|bough.image|bough.instance
---@param line string|table|nil a shell line that runs instead, or the options of `popen`, whose array part runs
---  instead; `detach`: as for `attach`
---@param opts table? with a shell line
---@return integer? code nil when `detach`'s keys were typed
function M.shell(place, line, opts)
  check_place(place, "shell")
  local given = {}
  if line ~= nil then
    for name, value in pairs(options.fold(line, opts, "shell")) do given[name] = value end
  elseif opts ~= nil then
    errors.raise("invalid", "shell", "options alone are the only argument: shell { user = \"nobody\" }")
  end
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
