--- bough: commands in sandboxes whose file systems branch like git.
--
-- Every failure raises an error value (kind, message, op, ...); `require "bough.safe"` is the same API
-- returning nil and that value.

local core = require "bough.core"
local engine = require "bough.engine"
local filespec = require "bough.filespec"
local host = require "bough.host"
local progress = require "bough.progress"
local task = require "bough.task"
local tee = require "bough.tee"
require "bough.session" -- adds to sessions, images and instances

---@class bough
local M = {}

--- Opens an engine: nothing, "local", "local:///store" or a path for the embedded one. Waits.
M.open = engine.open

-- tasks and the loop
M.run = core.run
M.spawn = core.spawn
M.sleep = core.sleep
M.step = core.step
M.fd = core.fd
M.timeout = core.timeout
M.deadline = core.deadline
M.on_error = core.on_error
M.all = task.all
M.race = task.race
M.completed = task.completed
M.scope = task.scope

-- errors
M.is_error = core.is_error
M.kinds = core.kinds

--- Where a stream goes: a pipe to the caller (popen), the caller's own, together with stdout, nowhere.
M.PIPE = core.PIPE
M.INHERIT = core.INHERIT
M.STDOUT = core.STDOUT
M.DEVNULL = false

-- file specs
M.file = filespec.file
M.bytes = filespec.bytes
M.dir = filespec.dir
M.symlink = filespec.symlink

-- pipelines
M.host = host.cmd
M.tee = tee.new

--- A kernel pipe: a reader and a writer, both usable with `popen`'s streams.
M.pipe = core.pipe

--- An `on_progress` that draws a bar on a terminal.
M.progress_bar = progress.bar

--- Serves an engine behind the REST API of ConTree: see bough.serve.options. Waits until it listens.
---@param opts bough.serve.options?
---@return bough.server
function M.serve(opts) return require("bough.serve").start(opts) end

return M
