--- One name in a directory of an image, bound to that image: listing a session and reading an entry
-- later reads what was listed, wherever the session has gone since.

local errors = require "bough.error"

local M = {}

---@class bough.entry
---@field name string last component
---@field full_path string absolute, in the image
---@field kind "file"|"dir"|"symlink"|"fifo"|"socket"|"other"
---@field size integer bytes
---@field mode integer permission bits
---@field mode_string string "0644"; goes back into a file spec as it is
---@field uid integer
---@field gid integer
---@field mtime number seconds since the epoch
---@field nlink integer
---@field symlink_to string?
---@field is_file boolean a regular file
---@field is_dir boolean
---@field is_symlink boolean
---@field is_fifo boolean
---@field is_socket boolean
---@field image bough.image
local methods = {}

--- The whole file. Waits.
---@return string
function methods:read() return self.image:read(self.full_path) end

--- Iterates over the content of the file in chunks.
---@return fun(): string?
function methods:stream() return self.image:stream(self.full_path) end

--- Copies the file or tree out. Waits.
---@param destination string? local path or directory
---@param opts { on_progress: function? }?
---@return string path
function methods:download(destination, opts) return self.image:download(self.full_path, destination, opts) end

--- Lists the directory, or a path below it. Waits.
---@param below string?
---@return bough.entry[]
function methods:ls(below)
  return self.image:ls(below and M.join(self.full_path, below) or self.full_path)
end

-- Told when asked for: listings hold entries by the hundred thousand.
local told = {}
function told.mode_string(self) return self.mode and ("%04o"):format(self.mode & 4095) or nil end
for _, kind in ipairs { "file", "dir", "symlink", "fifo", "socket" } do
  told["is_" .. kind] = function(self) return self.kind == kind end
end

local meta = {
  __name = "bough.entry",
  __tostring = function(self) return self.full_path end,
}

function meta:__index(name)
  local method = methods[name]
  if method then return method end
  local tell = told[name]
  return tell and tell(self)
end

--- Joins a directory of an image and a path below it.
---@param directory string
---@param path string
---@return string
function M.join(directory, path)
  return (directory:gsub("/*$", "")) .. "/" .. (path:gsub("^/+", ""))
end

--- Makes an entry from what an engine lists; `row` becomes the entry.
---@param image bough.image
---@param directory string
---@param row table with a name
---@return bough.entry
function M.new(image, directory, row)
  if type(row) ~= "table" or type(row.name) ~= "string" then
    errors.raise("protocol", "ls", "the engine listed something that is not an entry")
  end
  row.image, row.full_path = image, M.join(directory, row.name)
  return setmetatable(row, meta)
end

--- Makes the entry of what is at a path.
---@param image bough.image
---@param path string absolute
---@param row table
---@return bough.entry
function M.at(image, path, row)
  row.name = path:match("([^/]+)/*$") or "/"
  row.image, row.full_path, row.path = image, path, nil
  return setmetatable(row, meta)
end

return M
