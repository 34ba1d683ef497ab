--- Looking into images and taking things out. None of this starts a sandbox, and no link, fifo or device in
-- an image leads out of it or blocks.

local check = require "bough.check"
local compare = require "bough.compare"
local download = require "bough.download"
local entry = require "bough.entry"
local errors = require "bough.error"
local search = require "bough.search"

local M = {}

---@class bough.image
local methods = {}

local located -- image.lua's: the engine's handle, the image's uuid and its data

local raise, quote = errors.raise, errors.quote

local function image_path(path, op)
  if type(path) ~= "string" or path == "" or path:find("\0", 1, true) then
    raise("invalid", op, "expected a path in the image, got %s", quote(path))
  end
  return path:sub(1, 1) == "/" and path or "/" .. path
end

-- Another image, by itself, as a session that stands on it, or by its tag or uuid.
local function other_image(data, other, op)
  if type(other) == "string" then return data.context.images:get(other) end
  local class = getmetatable(other)
  local name = type(class) == "table" and class.__name
  if name == "bough.session" then return other:image() end
  if name == "bough.image" then return other end
  raise("invalid", op, "expected an image, a session, a tag or a uuid, got %s", quote(other))
end

--- The content of a file. Starts no sandbox; links never lead out of the image. Waits.
---@param path string
---@return string
function methods:read(path)
  local handle, uuid = located(self, "read")
  return handle:read(uuid, image_path(path, "read"))
end

--- Iterates over the content of a file in chunks, with flat memory; leaving the loop closes the file. Waits.
---@param path string
---@return fun(): string?
function methods:stream(path)
  local handle, uuid = located(self, "stream")
  path = image_path(path, "stream")
  if handle.open then
    local file = handle:open(uuid, path)
    return function()
      local chunk = file and check.named("stream", file.read, file)
      if not chunk and file then
        file:close()
        file = nil
      end
      return chunk
    end, nil, nil, file
  end
  local content = handle:read(uuid, path)
  local at = 1
  return function()
    if at > #content then return nil end
    local chunk = content:sub(at, at + 65535)
    at = at + #chunk
    return chunk
  end
end

--- Copies a file or a tree out, whole or not at all. A file replaces a file that is there, a tree nothing;
--- devices and sockets in a tree stay behind. Waits.
---@param source string path in the image
---@param destination string? local path; a directory, or a path that ends in "/", receives the base name.
---  Default: the base name here
---@param opts { on_progress: fun(event: bough.progress_event)? }?
---@return string path where it went
---@return { bytes: integer, files: integer, skipped: integer }? result of a tree
function methods:download(source, destination, opts)
  local handle, uuid = located(self, "download")
  opts = errors.check_keys("download", opts, { "on_progress" })
  local on_progress = check.foreign(check.callback(opts.on_progress, "download", "on_progress"))
  return download.save(self, handle, uuid, image_path(source, "download"), destination, on_progress)
end

--- Lists a directory, sorted by name. Waits.
---@param path string? default "/"
---@return bough.entry[]
function methods:ls(path)
  local handle, uuid = located(self, "ls")
  path = image_path(path or "/", "ls")
  local entries = handle:list_dir(uuid, path)
  for i, row in ipairs(entries) do entries[i] = entry.new(self, path, row) end
  table.sort(entries, function(a, b) return a.name < b.name end)
  return entries
end

--- Iterates over a directory: `for e in image:entries "/etc" do`. Waits.
---@param path string? default "/"
---@return fun(): bough.entry?
function methods:entries(path)
  local handle, uuid = located(self, "entries")
  path = image_path(path or "/", "entries")
  return search.iterate(self, handle, uuid, path, { op = "entries", max_depth = 1 })
end

--- Iterates over everything below a directory, parents first; links are not followed. Waits.
---@param path string? default "/"
---@return fun(): bough.entry?
function methods:walk(path)
  local handle, uuid = located(self, "walk")
  return search.iterate(self, handle, uuid, image_path(path or "/", "walk"), { op = "walk" })
end

--- What is at a path; links are followed. Waits. Raises `not_found`.
---@param path string
---@return bough.entry
function methods:stat(path)
  local handle, uuid = located(self, "stat")
  return search.stat(self, handle, uuid, image_path(path, "stat"))
end

--- Iterates over a tar archive (POSIX, pax) of a file or a tree, in chunks, with flat memory: owners, times, hard
--- links and extended attributes are kept, sockets stay behind. Names are those in the image without the "/" in
--- front, "etc/hosts"; the root has no entry of its own. Leaving the loop ends it. Waits.
---@param path string? default "/"
---@return fun(): string?
function methods:archive(path)
  local handle, uuid = located(self, "archive")
  path = image_path(path or "/", "archive")
  if handle.archive then return handle:archive(uuid, path) end
  if not handle.look then raise("unsupported", "archive", "this engine cannot make archives yet") end
  return search.archive(handle, uuid, path)
end

---@class bough.find_options
---@field path string? where to begin; default "/"
---@field name string|string[]|nil patterns for names: "*.conf"
---@field kind string|string[]|nil "file", "dir", "symlink", "fifo", "socket", "other"
---@field larger integer|string|nil files of more bytes: 4096, "10M"
---@field smaller integer|string|nil files of fewer bytes
---@field newer number|string|{ ago: number }|nil changed since: seconds since the epoch, "1h" for the last
---  hour
---@field older number|string|{ ago: number }|nil
---@field max_depth integer? 1: only the directory's own
---@field max_count integer? how many at most

--- What is below a directory and fits all conditions, parents first. Waits.
---@param opts bough.find_options?
---@return bough.entry[]
function methods:find(opts)
  local handle, uuid = located(self, "find")
  local filter, wanted = search.filter(opts, "find")
  local path = image_path(opts and opts.path or "/", "find")
  return search.find(self, handle, uuid, path, filter, wanted)
end

--- The full paths that match a pattern, sorted: `image:glob "/etc/**/*.conf"`. "**" is any number of
--- directories; names that begin with a dot match too; links are not followed. One that ends in "/" finds
--- only directories. Waits.
---@param pattern string
---@return string[]
function methods:glob(pattern)
  local handle, uuid = located(self, "glob")
  return search.glob(self, handle, uuid, image_path(pattern, "glob"))
end

---@class bough.grep_options
---@field path string|string[]|nil files, and directories with what is below them; default "/"
---@field glob string|string[]|nil which files: "*.c"; with "!" in front which not
---@field fixed boolean? the patterns are plain text
---@field case "sensitive"|"insensitive"|"smart"|nil smart: insensitive unless a pattern has a capital letter
---@field before integer? lines of context
---@field after integer?
---@field context integer? both
---@field max_count integer? matching lines in each file
---@field max_total integer? matching lines in all; default 10000, math.huge for all
---@field max_bytes (integer|string)? bytes of lines in all
---@field seconds number? the search ends after that time, as if a limit had stopped it

--- Searches files for regular expressions (PCRE2; any of several). Binary files are passed over. Waits.
---@param pattern string|string[]
---@param opts bough.grep_options?
---@return { matches: bough.match[], truncated: boolean, files: integer? } found truncated: a limit stopped
---  it, so there may be more; files: how many were searched, nil when time or max_bytes
---  ended it
function methods:grep(pattern, opts)
  local handle, uuid = located(self, "grep")
  local args, bounds = search.grep_args(pattern, opts, function(path) return image_path(path, "grep") end, "grep")
  if not handle.look then raise("unsupported", "grep", "this engine cannot search in images yet") end
  return search.grep(handle, uuid, args, bounds)
end

--- What this image has that another one has not (added), has otherwise (changed), or lacks (deleted): what
--- a run did is `image:run(...):diff(image)`. Times alone are no difference. Waits.
---@param other bough.image|bough.session|string
---@return bough.diff
function methods:diff(other)
  local handle, uuid, data = located(self, "diff")
  local other_data, _
  _, other, other_data = located(other_image(data, other, "diff"), "diff")
  if other_data.context ~= data.context then
    raise("invalid", "diff", "the other image belongs to another engine")
  end
  if not handle.look then raise("unsupported", "diff", "this engine cannot compare images yet") end
  if other == uuid then return compare.new {} end
  return compare.new(search.all(handle, uuid, { "diff" }, { other = other }))
end

--- Adds the methods to those of images. What goes wrong in one is raised under its name, whatever step of it
--- or other method it was in.
---@param to table
---@param how fun(image: bough.image, op: string): table|userdata, string, table
function M.add(to, how)
  located = how
  for name, method in pairs(methods) do
    to[name] = function(...) return check.named(name, method, ...) end
  end
end

return M
