--- Copying files and trees out of an image: under a temporary name beside the destination, then renamed, so
-- that a failure leaves nothing half-written.

local core = require "bough.core"
local errors = require "bough.error"
local progress = require "bough.progress"

local M = {}

local raise, quote = errors.raise, errors.quote

local kind_of = { [2] = "not_found", [13] = "denied", [17] = "exists", [21] = "exists", [28] = "resource" }

local function failure(message, number)
  return errors.new(kind_of[number] or "io", "download", { errno = number }, "%s", message)
end

local function fail(path, message, number)
  error(failure(message or path .. ": cannot write", number), 0)
end

local function is_directory(path)
  local found = core.fs.stat(path)
  return found ~= nil and found.kind == "dir"
end

-- The directory of a path, "" or with its "/".
local function directory_of(path) return path:match("^(.*/)[^/]*$") or "" end

-- A name of its own beside the destination, short whatever the destination's is.
local function partial_name(destination)
  local unique = core.sha256(("%p %d %f %d"):format({}, os.time(), os.clock(), math.random(0)))
  return ("%s.bough-%s.part"):format(directory_of(destination), unique:sub(1, 12))
end

-- Raises a problem with the temporary name as one with the destination.
local function fail_as(problem, temporary, destination)
  if errors.is(problem) then
    local first, last = problem.message:find(temporary, 1, true)
    if first then
      problem.message = problem.message:sub(1, first - 1) .. destination .. problem.message:sub(last + 1)
    end
  end
  error(problem, 0)
end

-- Where it goes; a directory, or a path that ends in "/", receives the base name.
local function place(source, destination)
  local base = source:match("([^/]+)/*$")
  if base == "." or base == ".." then base = nil end
  if destination ~= nil and (type(destination) ~= "string" or destination == ""
    or destination:find("\0", 1, true)) then
    raise("invalid", "download", "the destination must be a path, got %s", quote(destination))
  end
  if destination and destination:sub(-1) ~= "/" and not is_directory(destination) then return destination end
  if not base then
    raise("invalid", "download", "%s has no name of its own: name the destination", quote(source))
  end
  return destination and destination:gsub("/*$", "") .. "/" .. base or base
end

local function check_directory(destination)
  local directory = directory_of(destination)
  local name = directory == "" and "." or directory:gsub("(.)/+$", "%1")
  local found, message, number = core.fs.stat(name)
  if found or number == 2 or number == 20 then
    if found and found.kind == "dir" then return end
    raise("not_found", "download", "there is no directory %s", quote(name))
  elseif number == 40 then
    raise("invalid", "download", "%s leads in a circle of symbolic links", quote(name))
  end
  fail(name, message, number)
end

-- Puts the finished file in its place, or removes it.
local function replace(partial, destination, write)
  local good, problem = pcall(function()
    write()
    local renamed, message, number = os.rename(partial, destination)
    if not renamed then fail(destination, ("%s: %s"):format(destination, message), number) end
  end)
  if not good then
    os.remove(partial)
    fail_as(problem, partial, destination)
  end
  return destination
end

-- Through Lua, for engines without `save`.
local function copy_chunks(image, source, destination)
  -- the first chunk is asked for before anything is made, so that a missing source costs nothing
  local chunks, _, _, _ <close> = image:stream(source)
  local chunk = chunks()
  local partial = partial_name(destination)
  local file, message, number = io.open(partial, "wb")
  if not file then fail_as(failure(message or destination, number), partial, destination) end
  return replace(partial, destination, function()
    local _ <close> = file
    while chunk do
      local written, why, code = file:write(chunk)
      if not written then fail(destination, why, code) end
      chunk = chunks()
    end
    local closed, why, code = file:close()
    if not closed then fail(destination, why, code) end
  end)
end

local function save_tree(handle, uuid, source, destination, on_progress, mode)
  if core.fs.stat(destination, true) then
    raise("exists", "download", "%s is there already: a tree replaces nothing, name another destination",
      quote(destination))
  end
  local prefix = directory_of(destination) .. ".bough-download"
  local made, work = pcall(core.fs.temp_dir, prefix)
  if not made then fail_as(work, prefix, destination) end
  local result
  local good, problem = pcall(function()
    local tree = work .. "/tree"
    core.fs.mkdir(tree, mode | 448) -- 0700: whatever the image says, it must take what is inside
    local job = handle:extract(uuid, source, tree)
    result = progress.follow(job, on_progress, { op = "download", item = source })
    core.fs.rename(tree, destination, true)
  end)
  pcall(core.fs.remove, work)
  if not good then fail_as(problem, work .. "/tree", destination) end
  return destination, result
end

--- Writes the file or tree at `source` of an image to a local path. Waits.
---@param image bough.image
---@param handle table|userdata the engine's driver
---@param uuid string
---@param source string path in the image
---@param destination string? local path; a directory, or a path that ends in "/", receives the base name
---@param on_progress function?
---@return string path
---@return { bytes: integer, files: integer, skipped: integer }? result of a tree
function M.save(image, handle, uuid, source, destination, on_progress)
  local found = handle.extract and image:stat(source)
  if found and found.is_dir then
    destination = place(source, destination)
    check_directory(destination)
    return save_tree(handle, uuid, source, destination, on_progress, (found.mode or 493) & 511)
  end
  if not source:find("[^/]") then raise("invalid", "download", "%s names no file", quote(source)) end
  destination = place(source, destination)
  check_directory(destination)
  if not handle.save then return copy_chunks(image, source, destination) end
  local partial = partial_name(destination)
  return replace(partial, destination, function()
    progress.follow(handle:save(uuid, source, partial), on_progress, { op = "download", item = source })
  end)
end

return M
